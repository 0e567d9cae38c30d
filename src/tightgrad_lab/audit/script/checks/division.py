"""Micro-batches of one window that are divided by different numbers, and terms that are not divided with their loss."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal

from tightgrad_lab.audit.patterns import named, undivided
from tightgrad_lab.audit.script.finding import Remark
from tightgrad_lab.audit.script.records import Backward
from tightgrad_lab.audit.script.windows import Window

LEAST = 5e-3
ROUND = ("1", "5", "2")
"""Digits of numbers that people write for the weight of a term, the likeliest first."""


def check_division(windows: Sequence[Window], scaled: set[int]) -> Iterator[Remark]:
    """Judge how the micro-batches of one optimizer's windows are divided.

    Args:
        windows: of the optimizer.
        scaled: numbers of windows whose gradient is scaled afterwards, or of which a part is taken.
    """
    longer = [one for one in windows if one.length > 1 and not one.in_parts and one.number not in scaled]
    longer = [one for one in longer if not any(step.closure for step in one.steps)]
    if not longer:
        return
    usual = max(longer, key=lambda one: sum(other.length == one.length for other in longer)).length
    full = [one for one in longer if one.length == usual]
    yield from _apart(full, usual)
    yield from _undivided(full, usual)


def _apart(windows: Sequence[Window], usual: int) -> Iterator[Remark]:
    """The same place of each window counts less than the others."""
    ranks = windows[0].ranks
    for each in (False, True):
        patterns = [_pattern(own, each=each) for window in windows for own in window.backwards]
        first = patterns[0]
        if not first or any(len(one) != usual or not _same(one, first) for one in patterns):
            continue
        if max(first) - min(first) <= LEAST * max(first):
            return  # all count the same
        cause = None if abs(sum(first) / ranks - 1) <= LEAST else _cause(first, usual, windows[0].backwards[0])
        if cause:
            numbers = ", ".join(f"{one / max(first):.3g}" for one in first)
            words = f"the micro-batches of a step count {numbers} times the one that counts most: {cause[0]}"
            yield Remark("divided apart", words, windows[0].backwards[0][-1].place, _where(windows[0]), cause[1])
        return


def _pattern(backwards: Sequence[Backward], *, each: bool) -> list[float]:
    """What each micro-batch of a window (or each target of it) counts; empty if it is not known."""
    found = []
    for one in backwards:
        if one.calls:
            whole, targets = sum(call.mass for call in one.calls), sum(call.targets for call in one.calls)
            found.append((whole / max(1, targets) if each else whole) / one.scale)
        elif len(one.terms) == 1:
            ((factor, divisors),) = one.terms
            found.append(factor / math.prod(divisors) / one.scale)
    return found if len(found) == len(backwards) and min(found, default=0.0) > 0 else []


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(abs(mine - theirs) <= LEAST * theirs for mine, theirs in zip(one, other, strict=True))


def _cause(counts: Sequence[float], usual: int, backwards: Sequence[Backward]) -> tuple[str, str] | None:
    """What makes micro-batches count this, and the cure."""
    words = named(counts, usual)
    if words:
        return words, f"divide the loss of every micro-batch by the number of micro-batches ({usual})."
    if all(len(one.calls) == place * len(backwards[0].calls) > 0 for place, one in enumerate(backwards, start=1)):
        return (
            "backward is called on a running total, so that each micro-batch counts again with every later one",
            "call backward on the loss of each micro-batch alone.",
        )
    return None


def _undivided(windows: Sequence[Window], usual: int) -> Iterator[Remark]:
    """A term that is added to each micro-batch's loss, which is divided, and is not divided itself."""
    wholes = [_is_one(window) for window in windows]
    found = set.intersection(
        *(
            set(undivided(one.terms, usual, window=whole, scale=one.scale))
            for window, whole in zip(windows, wholes, strict=True)
            for own in window.backwards
            for one in own
        )
    )
    if not found:
        return
    factor = max(found)
    times = "" if factor == 1 else f" times {factor:.3g}"
    cause = (
        f"a term of the loss{times} counts {usual} times a step: it is added undivided to the loss of each of {usual} "
        "micro-batches, while that loss is divided"
    )
    certain = usual > 2 and (factor == 1 or _roundness(factor) < _roundness(factor * usual))
    if not certain:
        cause += ", unless the term's own weight is divided already"
    cure = f"divide the whole loss, (loss + term) / {usual}, or add the term to one micro-batch of a step."
    place = windows[0].backwards[0][0].place
    yield Remark("undivided term", cause, place, _where(windows[0]), cure, wrong=certain)


def _is_one(window: Window) -> bool:
    """Whether the targets of a loss count one in all, as they do where they are divided by the window's."""
    masses: dict[str, float] = defaultdict(float)
    for own in window.backwards:
        for one in own:
            for call in one.calls:
                masses[call.site] += call.mass / one.scale / window.ranks
    return any(abs(mass - 1) <= LEAST for mass in masses.values())


def _roundness(value: float) -> tuple[int, int]:
    """How likely somebody writes this number: how many digits it has, and which is the first."""
    digits = "".join(map(str, Decimal(f"{value:.9g}").as_tuple().digits)).rstrip("0")
    return len(digits), ROUND.index(digits) if digits in ROUND else len(ROUND)


def _where(window: Window) -> str:
    return f"{window.ranks} rank{'s' if window.ranks > 1 else ''}, step {window.number + 1}"
