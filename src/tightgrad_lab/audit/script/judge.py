"""All checks of one run of a script, and what they say together."""

from collections.abc import Iterator, Sequence

from tightgrad_lab.audit.script.checks.clipping import check_clips
from tightgrad_lab.audit.script.checks.division import check_division
from tightgrad_lab.audit.script.checks.gradients import Kept, check_gradients
from tightgrad_lab.audit.script.checks.routine import check_routine, listed
from tightgrad_lab.audit.script.checks.targets import check_batches, check_targets
from tightgrad_lab.audit.script.checks.weights import check_weights
from tightgrad_lab.audit.script.finding import Remark, short
from tightgrad_lab.audit.script.records import Ledger
from tightgrad_lab.audit.script.windows import Window, windows_of
from tightgrad_lab.errors import ArgumentError


def judge(ledgers: Sequence[Ledger]) -> list[Remark]:
    """What is wrong with, and worth knowing of, one run; the ledgers are of all its ranks, rank 0 first.

    Raises:
        ArgumentError: no step was seen.
    """
    first = ledgers[0]
    ranks = f"{len(ledgers)} rank{'s' if len(ledgers) > 1 else ''}"
    if not any(not step.skipped for step in first.steps):
        raise ArgumentError(
            f"with {ranks}: no optimizer step was seen before the script ended, so nothing can be judged; does it "
            "train with these arguments, and with a torch.optim.Optimizer?"
        )
    if len(ledgers) > 1 and not any(ledger.collectives for ledger in ledgers):
        words = (
            "the script uses nothing of torch.distributed: its ranks know nothing of each other and are not compared"
        )
        return [Remark("one process", words, "", ranks, wrong=False), *judge(ledgers[:1])]
    optimizers = sorted({step.optimizer for step in first.steps})
    windows = {one: windows_of(ledgers, one) for one in optimizers}
    found: list[Remark] = []
    for one in optimizers:
        used = {
            id(b) for other in optimizers if other != one for w in windows[other] for own in w.backwards for b in own
        }
        shared = {id(b) for w in windows[one] for own in w.backwards for b in own}
        kept: Kept = {}
        if not first.sharded:
            remarks, kept = check_gradients(windows[one], used & shared)
            found += remarks
        found += check_weights(windows[one], kept)
        found += check_division(windows[one], set(kept))
        found += check_batches(windows[one])
        found += check_clips(ledgers, windows[one])
        found += _traffic(windows[one], kept)
        found += _worth_knowing(first, windows[one])
    found += check_routine(ledgers, list(windows.values()))
    found += check_targets(first, ranks)
    found += _unseen(ledgers, ranks)
    if first.sharded:
        words = "parameters are sharded: what each target counts is checked, and not what the optimizer takes"
        found.append(Remark("sharded", words, "", ranks, wrong=False))
    else:
        found += _different(ledgers, ranks)
    return merged(found)


def merged(found: Sequence[Remark]) -> list[Remark]:
    """Each kind once, where it shows most; faults first, without what only follows from another."""
    by_kind: dict[str, Remark] = {}
    for one in found:
        known = by_kind.setdefault(one.kind, one)
        if _spread(one) > _spread(known):
            by_kind[one.kind] = one
    for kind, consequences in EXPLAINS.items():
        if kind in by_kind and by_kind[kind].wrong:
            for consequence in consequences:
                by_kind.pop(consequence, None)
    return sorted(by_kind.values(), key=lambda one: not one.wrong)


def _spread(one: Remark) -> float:
    return 0.0 if one.low is None or one.high is None else one.high - one.low


LOW_PRECISION = 1e-4
EXPLAINS = {
    "no sync": ("clip each rank", "traffic", "weights differ"),
    "mean of micro-batch means": ("mean of rank means",),
    "clip before unscale": ("scaled by hand", "scaled apart"),
    "cleared": ("short window", "leak", "mass", "mean of micro-batch means", "mean of rank means"),
    "clip in mid-window": ("cleared", "uneven", "scaled by hand", "scaled apart", "not cleared"),
    "clip each rank": ("uneven",),
    "unscaled twice": ("clip before unscale",),
    "sum": ("short window", "leak"),
    "mass": ("undivided term",),
    "divided apart": ("mass", "mass of its own", "mean of micro-batch means", "undivided term", "short window", "leak"),
    "same micro-batch": ("same data",),
    "off by one": ("short window",),
    "nothing to train": ("no gradient", "no optimizer", "unseen"),
    "not cleared": ("leak",),
    "all masked": ("short window", "undefined"),
}
"""Fault -> what need not be said beside it."""


def _traffic(windows: Sequence[Window], kept: Kept) -> Iterator[Remark]:
    """Gradients cross the network after every micro-batch."""
    for window in windows:
        if window.number in kept:
            continue  # some of its backwards are another optimizer's
        spoke = sum(backward.collectives > 0 for backward in window.backwards[0])
        if window.ranks > 1 and window.length > 1 and spoke == window.length:
            total = sum(backward.collectives for backward in window.backwards[0])
            words = (
                f"gradients cross the network {spoke} times a step ({total} collectives) where once would do: use "
                "no_sync until the last micro-batch"
            )
            place = window.backwards[0][0].place
            where = f"{window.ranks} ranks, step {window.number + 1}"
            yield Remark("traffic", words, place, where, wrong=False)
            return


def _worth_knowing(ledger: Ledger, windows: Sequence[Window]) -> Iterator[Remark]:
    """Parameters without a gradient, and sums in low precision."""
    step = windows[0].steps[0] if windows else None
    if step is None:
        return
    where = f"{windows[0].ranks} rank{'s' if windows[0].ranks > 1 else ''}, step {windows[0].number + 1}"
    never = set(step.parameters).intersection(*(set(w.steps[0].parameters) - w.steps[0].taken.keys() for w in windows))
    never -= {number for window in windows for one in window.backwards[0] for number in one.gradient}  # cleared
    if never:
        known = listed([ledger.names.get(number, "") for number in sorted(never)])
        words = (
            f"{len(never)} of {len(step.parameters)} parameters of {step.kind} get no gradient: {known} (a detach or "
            "no_grad cuts them off, or the loss makes no use of them)"
        )
        yield Remark("no gradient", words, step.place, where, wrong=False)
    if step.eps > LOW_PRECISION and windows[0].length > 1:
        words = f"gradients of {windows[0].length} micro-batches are added up in low precision (eps {step.eps:.2g})"
        yield Remark(
            "low precision", words, step.place, where, "keep parameters in float32 under autocast.", wrong=False
        )


def _unseen(ledgers: Sequence[Ledger], ranks: str) -> Iterator[Remark]:
    backwards = ledgers[0].backwards
    unseen = [one for one in backwards if not one.calls]
    if unseen:
        words = (
            f"the loss of {len(unseen)} of {len(backwards)} backwards is not one of torch's (fused or written by "
            f"hand): what its targets count is not seen ({short(unseen[0].place)})"
        )
        yield Remark("unseen", words, unseen[0].place, ranks, wrong=False)
    left = len(backwards) - max((step.backwards for step in ledgers[0].steps), default=0)
    if ledgers[0].ended and left and not backwards[-1].in_step:
        words = f"the script ends with {left} micro-batches that no step takes"
        yield Remark("left over", words, backwards[-1].place, ranks, wrong=False)


def _different(ledgers: Sequence[Ledger], ranks: str) -> Iterator[Remark]:
    """Ranks that took the same and have different weights."""
    for number, steps in enumerate(zip(*(ledger.steps for ledger in ledgers), strict=False)):
        same = {step.parameters for step in steps}
        if len(same) == 1 and len({step.after for step in steps}) > 1:
            cause = "ranks differ: their weights are not the same after a step"
            cure = "start all ranks from the same weights (DDP sees to it), and step them with the same gradient."
            yield Remark("weights differ", cause, steps[0].place, f"{ranks}, step {number + 1}", cure)
            return
