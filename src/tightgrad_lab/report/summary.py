"""The summary: the image case in one sentence, the count of verdicts, and the claims chapter by chapter."""

from collections import Counter

from markupsafe import Markup

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.claims import Judged
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.model import number
from tightgrad_lab.report.texts import Texts

ALL = "clip+accumulate+compress"
VERDICTS = ("supported", "mixed", "refuted", "open")


def factor(texts: Texts, value: float) -> Markup:
    """A factor as it stands in a sentence: 1.31×."""
    return number(value, texts("unit.factor", value=units.factor_text(value)[:-1]).replace(" ", units.NBSP))


def times(value: float) -> Markup:
    """A factor without its sign, for "98.2 times fewer"."""
    return number(value, units.factor_text(value)[:-1])


def counted(claims: dict[str, Judged], texts: Texts) -> Markup:
    """How many claims got which verdict."""
    found = Counter(claim.verdict for claim in claims.values())
    shown = {name: number(found[name], str(found[name])) for name in VERDICTS}
    key = "summary.counted" if found["open"] else "summary.counted.all"
    return texts.html(key, count=number(len(claims), str(len(claims))), **shown)


def headline(runs: Runs, texts: Texts) -> Markup:
    """The image case in one sentence."""
    case = runs.case("image")
    if case is None or not {"none", ALL} <= case.combinations.keys():
        return texts.html("summary.none")
    form = cells.metric_format(case)
    values = {name: cells.mean(case, name, "value") for name in ("none", ALL)}
    ratios = {key: cells.ratio(case, ALL, key) for key in ("wire_bytes", "peak_memory_bytes", "step_seconds")}
    shown = {k: factor(texts, v) if v is not None else Markup(units.MISSING) for k, v in ratios.items()}
    return texts.html(
        "summary.headline",
        metric=texts.metric(cells.metric_name(case)),
        own=number(values[ALL], form(values[ALL])),
        base=number(values["none"], form(values["none"])),
        bytes=shown["wire_bytes"],
        memory=shown["peak_memory_bytes"],
        time=shown["step_seconds"],
    )
