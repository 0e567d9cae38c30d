"""The first check: does each target of a window count the same, and do all of them together count one?

For targets of one loss, called at one place of the script. What differs inside a single call (class weights, means over
sequences) is the script's own choice, and is not judged.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from tightgrad_lab.audit.script.finding import Remark, short
from tightgrad_lab.audit.script.records import LossCall
from tightgrad_lab.audit.script.windows import Window

LEAST = 5e-3
"""A weight this close to what is due is due."""
LEAST_POWER = 5
"""Of two, in a loss scale."""
SUM = "divide the sum of the losses by the number of targets of the whole window, over all ranks."


@dataclass(frozen=True)
class Counted:
    """A loss call in a window: who called it, and what it counts for in the end.

    Args:
        call: as it was seen.
        rank, backward: of the window.
        weight: of one target.
        mass: of all of them.
        targets: how many there are, with ignored ones that are in the denominator.
    """

    call: LossCall
    rank: int
    backward: int
    weight: float
    mass: float
    targets: int


Calls = list[Counted]


def calls_of(window: Window, shares: Sequence[Sequence[float]] | None) -> dict[str, Calls]:
    """A window's calls by their place and that of the backward; with `shares`, times what was taken of each one."""
    found: dict[str, Calls] = defaultdict(list)
    for rank, backwards in enumerate(window.backwards):
        for place, backward in enumerate(backwards):
            share = 1.0 if shares is None else shares[rank][place]
            factor = share / backward.scale / window.ranks
            for call in backward.calls:
                weight = (call.low + call.high) / 2 * factor
                found[f"{call.site}\n{backward.place}"].append(
                    Counted(call, rank, place, weight, call.mass * factor, call.targets)
                )
    return found


def check_weights(windows: Sequence[Window], shares: dict[int, list[list[float]]]) -> list[Remark]:
    """Judge all losses of one optimizer.

    Args:
        windows: of the optimizer.
        shares: number of the window -> what was taken of each backward, where that is known and not all 1.
    """
    sites: dict[str, dict[int, Calls]] = defaultdict(dict)
    judged = [_taken(window, shares.get(window.number)) for window in windows]
    judged = [(window, left) for window, left in judged if not any(step.closure for step in window.steps)]
    windows = [window for window, _ in judged]
    for window, left in judged:
        for site, calls in calls_of(window, left).items():
            sites[site][window.number] = calls
    by_number = {window.number: window for window in windows}
    usual = _usual(windows)
    ignored = {site: _ignored(site, by_window, by_number) for site, by_window in sites.items()}
    for site in [site for site, remark in ignored.items() if remark is not None]:
        sites[site] = {number: [_with_ignored(one) for one in calls] for number, calls in sites[site].items()}
    found: list[Remark] = []
    for site, by_window in sites.items():
        found += _uneven(site, by_window, by_number)
        found += _empty(site, by_window, by_number)
        remark = ignored[site]
        found += [] if remark is None else [remark]
        found += _windows(site, by_window, by_number, usual)
    return [*found, *_all_windows(sites, by_number, usual, shares)]


def _taken(window: Window, shares: list[list[float]] | None) -> tuple[Window, list[list[float]] | None]:
    """The window without backwards of which nothing is taken, such as another optimizer's."""
    if shares is None:
        return window, None
    pairs = [
        [(backward, share) for backward, share in zip(*own, strict=True) if share]
        for own in zip(window.backwards, shares, strict=True)
    ]
    backwards = [[backward for backward, _ in own] for own in pairs]
    return replace(window, backwards=backwards), [[share for _, share in own] for own in pairs]


def _usual(windows: Sequence[Window]) -> int:
    """K: the commonest number of micro-batches; the first one's among equals."""
    return Counter(window.length for window in windows).most_common(1)[0][0] if windows else 0


def _uneven(site: str, by_window: dict[int, Calls], windows: dict[int, Window]) -> Iterator[Remark]:
    """Targets of one window that count differently."""
    low, high, worst, place, across = 1.0, 1.0, 0.0, 0, False
    function = ""
    for number, calls in by_window.items():
        for ordinal in {one.call.ordinal for one in calls}:
            own = [one for one in calls if one.call.ordinal == ordinal and one.call.targets]
            even = [one for one in own if one.call.high - one.call.low <= _tolerance(own) * abs(one.call.high)]
            targets, mass = sum(one.targets for one in own), sum(one.mass for one in own)
            if len(own) < 2 or len(even) < len(own) or mass <= 0 or not _means(own):
                continue
            due = mass / targets
            ratios = [one.weight / due for one in own]
            if max(ratios) - min(ratios) > worst and max(ratios) - min(ratios) > _tolerance(own):
                worst, place, function = max(ratios) - min(ratios), number, own[0].call.function
                across = _only_ranks_differ(own)
            low, high = min(low, *ratios), max(high, *ratios)
    if not worst:
        return
    what = (
        "mean of rank means: every rank divides by its own targets"
        if across
        else ("mean of micro-batch means: a micro-batch with few targets counts as much as one with many")
    )
    yield Remark(
        "mean of rank means" if across else "mean of micro-batch means",
        f"a target counts between {low:.3g} and {high:.3g} times its due: {what}",
        _at(site),
        _where(windows[place]),
        f"{function} at {short(_at(site))}: {SUM}",
        low=low,
        high=high,
    )


def _means(calls: Calls) -> bool:
    """Whether every backward (or every rank) has the same mass, whatever its targets: a mean of means."""
    by_backward: dict[tuple[int, int], float] = defaultdict(float)
    by_rank: dict[int, float] = defaultdict(float)
    for one in calls:
        by_backward[one.rank, one.backward] += one.mass
        by_rank[one.rank] += one.mass
    return any(
        len(masses) > 1 and max(masses) - min(masses) <= 2 * _tolerance(calls) * max(masses)
        for masses in (list(by_backward.values()), list(by_rank.values()))
    )


def _only_ranks_differ(calls: Calls) -> bool:
    """Whether each rank's own targets all count the same."""
    by_rank: dict[int, list[float]] = defaultdict(list)
    for one in calls:
        by_rank[one.rank].append(one.weight)
    return len(by_rank) > 1 and all(
        max(weights) - min(weights) <= _tolerance(calls) * max(weights) for weights in by_rank.values()
    )


def _empty(site: str, by_window: dict[int, Calls], windows: dict[int, Window]) -> Iterator[Remark]:
    """Micro-batches without a target that counts."""
    for number, calls in by_window.items():
        for one in calls:
            backward = windows[number].backwards[one.rank][one.backward]
            if one.call.targets or backward.loss == backward.loss:
                continue
            yield Remark(
                "all masked",
                "a micro-batch has no target that counts: its mean is 0/0, and its loss NaN",
                _at(site),
                f"{_where(windows[number])}, micro-batch {one.backward + 1} of rank {one.rank}",
                f"leave out micro-batches whose labels are all masked, and {SUM}",
            )
            return


def _with_ignored(one: Counted) -> Counted:
    """A call whose denominator counts ignored targets too."""
    factor = one.mass / one.call.mass if one.call.mass else 0.0
    return replace(one, mass=one.call.with_ignored * factor, targets=one.call.targets + one.call.zero_counted)


def _ignored(site: str, by_window: dict[int, Calls], windows: dict[int, Window]) -> Remark | None:
    """Targets that are ignored, so that their loss is exactly 0, and count in the denominator."""
    calls = [one.call for found in by_window.values() for one in found]
    counted, left_out = sum(one.zero_counted for one in calls), sum(one.zero_left_out for one in calls)
    scales = [windows[n].backwards[one.rank][one.backward].scale for n, found in by_window.items() for one in found]
    own = [one.mass / scale for one, scale in zip(calls, scales, strict=True)]
    everything = [one.with_ignored / scale for one, scale in zip(calls, scales, strict=True)]
    if not counted or _spread(own) <= LEAST or _spread(everything) > LEAST:
        return None  # whatever is ignored adds 0 to the sum, and is not in the denominator
    targets = counted + sum(one.targets for one in calls)
    number = next(number for number, found in by_window.items() if any(one.call.zero_counted for one in found))
    cause = (
        f"{counted / targets:.1%} of the targets that count are ignored by the loss: theirs is exactly 0, and they are "
        f"in the denominator ({counted} of {targets})"
    )
    if left_out:
        cure = (
            "the mask of the denominator and ignore_index mean different targets (often pad = eos, so that the end of "
            "a turn is never learned): let both mean the same."
        )
        return Remark("ignored targets count", cause, _at(site), _where(windows[number]), cure)
    cure = "a mean over all targets, ignored ones too, makes every target count less where many are ignored."
    return Remark("all targets count", cause, _at(site), _where(windows[number]), cure, wrong=False)


def _spread(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / max(map(abs, values)) if values and any(values) else 0.0


def _windows(site: str, by_window: dict[int, Calls], windows: dict[int, Window], usual: int) -> Iterator[Remark]:
    """Windows of another length than the others, divided by the others' length."""
    masses = {number: sum(one.mass for one in calls) for number, calls in by_window.items()}
    full = [masses[number] for number in masses if windows[number].length == usual]
    if not full or usual < 2:
        return
    typical = median(full)
    for number, mass in masses.items():
        window = windows[number]
        length = window.length
        if length == usual or typical <= 0 or abs(mass / typical - length / usual) > 2 * LEAST:
            continue
        if abs(typical / usual - 1) <= 2 * LEAST:
            return  # each micro-batch counts one, in short windows as in long ones: said of all windows
        if length == 1 and not number:
            yield Remark(
                "off by one",
                f"the first step is taken after 1 micro-batch, with {mass / typical:.3g} of the mass; the others "
                f"after {usual}",
                window.backwards[0][-1].place,
                _where(window),
                "step when (i + 1) % K == 0, not when i % K == 0.",
                mass=mass / typical,
            )
            return
        relative = mass / typical
        epochs = [one.epoch for one in window.backwards[0]]
        before = sum(epoch != epochs[-1] for epoch in epochs)
        if length > usual:
            origin = f", {before} of them from the epoch before" if before else ""
            yield Remark(
                "leak",
                f"a window has {relative:.3g} times its mass: {length} micro-batches at {typical / usual:.3g} "
                f"each{origin}",
                window.backwards[0][-1].place,
                _where(window),
                "step after the last micro-batch of an epoch too, or call zero_grad when an epoch begins.",
                mass=relative,
            )
        else:
            yield Remark(
                "short window",
                f"a shorter window has {relative:.3g} of its mass: {length} micro-batches, divided by {usual}",
                window.backwards[0][-1].place,
                _where(window),
                "divide by the number of micro-batches (or targets) that the window really has.",
                mass=relative,
            )
        return


def _all_windows(
    sites: dict[str, dict[int, Calls]], windows: dict[int, Window], usual: int, shares: dict[int, list[list[float]]]
) -> Iterator[Remark]:
    """All windows count a multiple of one: K or W was multiplied or divided once too often. Every loss must say so."""
    if any(window.in_parts for window in windows.values()):
        return
    factors: list[float] = []
    totals: list[float] = []
    sums = together = True
    for by_window in sites.values():
        full = {number: calls for number, calls in by_window.items() if windows[number].length == usual}
        if not full:
            return
        totals.append(median(sum(one.mass for one in calls) for calls in full.values()))
        for ordinal in {one.call.ordinal for calls in full.values() for one in calls}:
            own = [[one.mass for one in calls if one.call.ordinal == ordinal] for calls in full.values()]
            factors.append(median(sum(masses) for masses in own))
        for number, calls in full.items():
            together &= len({one.backward for one in calls if one.rank == 0}) == usual
            weights = [one.weight * windows[number].ranks for one in calls if one.call.targets]
            sums &= bool(weights) and all(abs(weight - 1) <= LEAST for weight in weights)
    if not factors or _spread(factors) > LEAST or all(abs(total - 1) <= LEAST for total in totals):
        return
    mass, ranks = factors[0], next(iter(windows.values())).ranks
    site = next(iter(sites))
    where = _where(next(window for window in windows.values() if window.length == usual))
    if sums and mass > usual * (1 + LEAST):
        yield Remark(
            "sum",
            f"a window counts {mass:.4g} times: its losses are summed, and nobody divides by its targets",
            _at(site),
            where,
            SUM,
            wrong=usual > 1,
            mass=mass,
        )
        return
    count = usual if together else 1
    after = ranks > 1 and all(
        abs(one * ranks - 1) <= LEAST for number in windows for own in shares.get(number, [[0.0]]) for one in own
    )
    divisor = _divisor(windows, usual, mass) if together else 0
    for factor, what, cure in [*_known(count, ranks, after=after), *_divided(count, divisor)]:
        if abs(mass / factor - 1) <= LEAST:
            cause = f"a window counts {mass:.3g} times its due: {what}"
            yield Remark("mass", cause, _at(site), where, cure, mass=mass)
            return
    if together and usual > 1:
        words = f"a window counts {mass:.3g} times: its {usual} micro-batches count {mass / usual:.3g} each"
        yield Remark("mass of its own", f"{words} (a weight of the loss?)", _at(site), where, wrong=False, mass=mass)
    power = math.log2(mass) if mass > 0 else 0.0
    if power >= LEAST_POWER and abs(power - round(power)) <= LEAST:
        cause = f"a window counts {mass:.4g} times its due, a power of two: a loss scale is still in it"
        yield Remark(
            "scaled", cause, _at(site), where, "divide gradients by the loss scale before the step.", mass=mass
        )


def _divisor(windows: dict[int, Window], usual: int, mass: float) -> int:
    """The one number that the loss of every micro-batch is divided by, and that explains the mass; 0 if none does."""
    full = [backward for window in windows.values() if window.length == usual for backward in window.backwards[0]]
    found = {backward.divisors for backward in full}
    if len(found) != 1 or any(len(backward.calls) != 1 for backward in full):
        return 0
    divisors = found.pop()
    number = round(divisors[0]) if len(divisors) == 1 else 0
    least = 2 if usual > 1 else 3  # half a loss is a habit of its own
    explains = number >= least and number == divisors[0] and abs(mass * number / usual - 1) <= LEAST
    return number if explains and number != usual else 0


def _divided(usual: int, divisor: int) -> Iterator[tuple[float, str, str]]:
    if divisor and usual > 1:
        what = f"the loss is divided by {divisor}, and a step takes {usual} micro-batches"
        yield usual / divisor, what, "divide by the number of micro-batches of the window."
    elif divisor:
        what = f"the loss is divided by {divisor}, and every micro-batch is followed by a step"
        yield 1 / divisor, what, f"call optimizer.step and zero_grad after {divisor} micro-batches, or do not divide."


def _known(usual: int, ranks: int, *, after: bool) -> Iterator[tuple[float, str, str]]:
    if usual > 1:
        yield (
            usual,
            f"the loss is not divided by the number of micro-batches ({usual})",
            "divide each micro-batch's loss by the number of micro-batches in its window.",
        )
        yield (
            1 / usual,
            f"the loss is divided by the number of micro-batches ({usual}) twice",
            "divide once; Accelerate's and Lightning's backward do it already.",
        )
    if ranks > 1:
        yield (
            ranks,
            f"the loss is multiplied by the world size ({ranks}), or gradients are summed over ranks",
            "DDP and FSDP2 average over ranks; do not multiply a local mean by the world size.",
        )
        if after:
            yield (
                1 / ranks,
                f"gradients are averaged over {ranks} ranks, and divided by {ranks} once more",
                "leave the division by the world size to DDP, FSDP2 or dist.ReduceOp.AVG.",
            )
        yield (
            1 / ranks,
            f"the loss is divided by a total over all {ranks} ranks, and the wrapper divides again",
            "multiply the loss by the world size where it is divided by a total over all ranks.",
        )
    if usual > 1 and ranks > 1 and usual != ranks:
        yield usual * ranks, f"neither {usual} micro-batches nor {ranks} ranks are divided by", SUM
        yield 1 / (usual * ranks), f"{usual} micro-batches and {ranks} ranks are divided by twice", SUM


def _at(site: str) -> str:
    """The place of the loss."""
    return site.partition("\n")[0]


def _tolerance(calls: Calls) -> float:
    return max(LEAST, 4 * max((one.call.eps for one in calls), default=0.0))


def _where(window: Window) -> str:
    return f"{window.ranks} rank{'s' if window.ranks > 1 else ''}, step {window.number + 1}"
