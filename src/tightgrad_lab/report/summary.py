"""The summary: claims of the course, each with a verdict from the measured rows."""

from dataclasses import dataclass

from markupsafe import Markup

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.files import Case, Runs
from tightgrad_lab.report.model import number
from tightgrad_lab.report.pairs import PAIRS
from tightgrad_lab.report.stats import COMBINATIONS
from tightgrad_lab.report.texts import Texts

ALL = "clip+accumulate+compress"


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the course text; `verdict` is supported, refuted, mixed or open."""

    text: str
    verdict: str
    evidence: Markup


def pairs_in_words(texts: Texts, *numbers: int) -> Markup:
    """Links to pairs: Figure 2, Figure 7."""
    links = [
        Markup('<a href="#pair{}">{}</a>').format(n, texts("figure.label", label=n).replace(" ", units.NBSP))
        for n in numbers
    ]
    return Markup("、" if texts.language == "zh" else ", ").join(links)


def commands(*numbers: int) -> Markup:
    """The commands that make pairs, or nothing for those whose experiment does not exist yet."""
    ready = [pair.command for pair in PAIRS if pair.number in numbers and pair.content]
    return Markup(" ").join(Markup("<code>{}</code>").format(command) for command in dict.fromkeys(ready))


def _open(texts: Texts, *numbers: int) -> tuple[str, Markup]:
    return "open", texts.html("evidence.open", pairs=pairs_in_words(texts, *numbers), command=commands(*numbers))


def factor(texts: Texts, value: float) -> Markup:
    """A factor as it stands in a sentence: 1.31×."""
    return number(value, texts("unit.factor", value=units.factor_text(value)[:-1]).replace(" ", units.NBSP))


def times(value: float) -> Markup:
    """A factor without its sign, for "98.2 times fewer"."""
    return number(value, units.factor_text(value)[:-1])


def quantity(case: Case, combination: str, key: str) -> Markup:
    value = cells.mean(case, combination, key)
    form = units.seconds_text if key.endswith("seconds") else units.bytes_text
    return number(value, form(value))


def _memory(case: Case | None, texts: Texts) -> tuple[str, Markup]:
    found = cells.ratio(case, "accumulate", "peak_memory_bytes") if case else None
    if case is None or found is None:
        return _open(texts, 3, 4)
    values = {c: quantity(case, c, "peak_memory_bytes") for c in ("accumulate", "none")}
    evidence = texts.html("evidence.memory", ratio=factor(texts, found), own=values["accumulate"], base=values["none"])
    return "supported" if found < 1 else "refuted", evidence


def _bytes(case: Case | None, texts: Texts) -> tuple[str, Markup]:
    found = cells.ratio(case, "none", "wire_bytes", base="compress") if case else None
    if case is None or found is None:
        return _open(texts, 6, 13)
    values = {c: quantity(case, c, "wire_bytes") for c in ("compress", "none")}
    evidence = texts.html("evidence.bytes", factor=times(found), own=values["compress"], base=values["none"])
    return "supported" if found > 1 else "refuted", evidence


def _time(case: Case | None, texts: Texts) -> tuple[str, Markup]:
    found = cells.ratio(case, "compress", "step_seconds") if case else None
    if case is None or found is None:
        return _open(texts, 6, 13)
    values = {c: quantity(case, c, "step_seconds") for c in ("compress", "none")}
    evidence = texts.html("evidence.time", ratio=factor(texts, found), own=values["compress"], base=values["none"])
    return "supported" if found < 1 else "refuted", evidence


def _accuracy(case: Case | None, texts: Texts) -> tuple[str, Markup]:
    compressed = [c for c in COMBINATIONS if "compress" in c and case and cells.comparison(case, c)]
    if case is None or not compressed:
        return _open(texts, 11, 15)
    verdicts = {}
    for name in compressed:
        found = cells.comparison(case, name)
        verdicts[name] = found.verdict if found else "unknown"
    short = [texts.combination(name) for name, verdict in verdicts.items() if verdict == "short"]
    if "unknown" in verdicts.values():
        return "open", texts.html("evidence.accuracy.unknown")
    if short:
        verdict = "refuted" if len(short) == len(compressed) else "mixed"
        return verdict, texts.html("evidence.accuracy.short", short=texts.join(short))
    count = number(len(compressed), str(len(compressed)))
    return "supported", texts.html("evidence.accuracy.kept", count=count)


def _combined(case: Case | None, texts: Texts) -> tuple[str, Markup]:
    found = cells.comparison(case, ALL) if case else None
    if case is None or found is None:
        return _open(texts, 13)
    time = cells.ratio(case, ALL, "step_seconds")
    sent = cells.ratio(case, ALL, "wire_bytes")
    if time is None or sent is None:
        return _open(texts, 13)
    form = cells.difference_format(case)
    facts = {
        "time": factor(texts, time),
        "bytes": factor(texts, sent),
        "metric": texts.metric(cells.metric_name(case)),
        "difference": number(found.difference, form(found.difference)),
    }
    if found.noise is None:
        return "open", texts.html("evidence.combined.unknown", **facts)
    noise = number(found.noise, form(found.noise).lstrip("+"))
    evidence = texts.html("evidence.combined", noise=noise, **facts)
    good = [time < 1, found.verdict != "short"]
    return "supported" if all(good) else "mixed" if any(good) else "refuted", evidence


def claims(runs: Runs, texts: Texts) -> list[Claim]:
    """Every claim, in the order of the course."""
    case = runs.case("image")
    judged = {
        "explode": _open(texts, 2, 7),
        "memory": _memory(case, texts),
        "convergence": _open(texts, 9),
        "bytes": _bytes(case, texts),
        "time": _time(case, texts),
        "accuracy": _accuracy(case, texts),
        "combined": _combined(case, texts),
        "cures": _open(texts, 14),
    }
    return [Claim(texts(f"claim.{key}"), verdict, evidence) for key, (verdict, evidence) in judged.items()]


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
