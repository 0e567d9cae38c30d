"""Questions and answers, answered by the measured rows."""

from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from tightgrad_lab.report import cells, units
from tightgrad_lab.report.files import Case, Runs, find
from tightgrad_lab.report.model import number
from tightgrad_lab.report.stats import COMBINATIONS
from tightgrad_lab.report.summary import ALL, commands, factor, pairs_in_words, times
from tightgrad_lab.report.texts import Texts


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, what was measured about it, and what is still missing."""

    question: str
    answer: Markup


def _open(texts: Texts, *numbers: int) -> Markup:
    return texts.html("faq.open", pairs=pairs_in_words(texts, *numbers), command=commands(*numbers))


def _difference(case: Case, combination: str) -> Markup | None:
    found = cells.comparison(case, combination)
    if found is None:
        return None
    return number(found.difference, cells.difference_format(case)(found.difference))


def _max_norm(case: Case, texts: Texts) -> Markup | None:
    runs = list(case.combinations.get("clip", {}).values())
    shares = [share for run in runs if (share := cells.clipped_share(run)) is not None]
    norms = [norm for run in runs for norm in cells.finite_norms(run)]
    bound = find(runs[0].config["plan"], "max_norm") if runs else None
    difference = _difference(case, "clip")
    if not shares or not norms or difference is None or not isinstance(bound, int | float):
        return None
    share = sum(shares) / len(shares)
    return texts.html(
        "faq.max_norm.a",
        max_norm=number(bound, units.number_text(bound)),
        share=number(share, units.percent_text(share)),
        median=number(median(norms), units.number_text(median(norms))),
        largest=number(max(norms), units.number_text(max(norms))),
        metric=texts.metric(cells.metric_name(case)),
        difference=difference,
    )


def _learning_rate(case: Case, texts: Texts) -> Markup | None:
    runs = list(case.combinations.get("accumulate", {}).values())
    if not runs:
        return None
    settings = runs[0].config["settings"]
    count = find(runs[0].config["plan"], "micro_batches") or settings.get("micro_batches")
    rate = settings.get("learning_rate")
    sent = cells.ratio(case, "accumulate", "wire_bytes")
    memory = cells.ratio(case, "accumulate", "peak_memory_bytes")
    difference = _difference(case, "accumulate")
    known = isinstance(count, int | float) and isinstance(rate, int | float)
    if not known or sent is None or memory is None or difference is None:
        return None
    return texts.html(
        "faq.learning_rate.a",
        count=number(count, units.count_text(count)),
        rate=number(rate, units.number_text(rate)),
        metric=texts.metric(cells.metric_name(case)),
        difference=difference,
        bytes=factor(texts, sent),
        memory=factor(texts, memory),
    )


def _codec(case: Case, texts: Texts) -> Markup | None:
    fewer = cells.ratio(case, "none", "wire_bytes", base="compress")
    time = cells.ratio(case, "compress", "step_seconds")
    if fewer is None or time is None:
        return None
    return texts.html("faq.codec.a", factor=times(fewer), time=factor(texts, time))


def _short(case: Case, texts: Texts) -> Markup | None:
    found = {name: cells.comparison(case, name) for name in COMBINATIONS if "compress" in name}
    known = {name: result for name, result in found.items() if result}
    if not known:
        return None
    if any(result.verdict == "unknown" for result in known.values()):
        return texts.html("faq.short.a.unknown")
    short = [texts.combination(name) for name, result in known.items() if result.verdict == "short"]
    return texts.html("faq.short.a.some", names=texts.join(short)) if short else texts.html("faq.short.a.none")


def _combine(case: Case, texts: Texts) -> Markup | None:
    found = {name: cells.comparison(case, name) for name in ("clip", "accumulate", "compress", ALL)}
    known = {name: result.difference for name, result in found.items() if result}
    if len(known) < len(found):
        return None
    form = cells.difference_format(case)
    shown = {name: number(value, form(value)) for name, value in known.items()}
    total = sum(value for name, value in known.items() if name != ALL)
    return texts.html(
        "faq.combine.a",
        metric=texts.metric(cells.metric_name(case)),
        clip=shown["clip"],
        compress=shown["compress"],
        all=shown[ALL],
        sum=number(total, form(total)),
    )


def answers(runs: Runs, texts: Texts) -> list[Answer]:
    """Every question of the handbook; an answer without data says which experiment will give it."""
    case = runs.case("image")
    asked = {
        "max_norm": (_max_norm, (7, 14)),
        "learning_rate": (_learning_rate, (9,)),
        "codec": (_codec, (6,)),
        "combine": (_combine, (13,)),
        "short": (_short, (15,)),
    }
    found = []
    for key, (measure, pairs) in asked.items():
        answer = measure(case, texts) if case else None
        found.append(Answer(texts(f"faq.{key}.q"), answer if answer is not None else _open(texts, *pairs)))
    return found
