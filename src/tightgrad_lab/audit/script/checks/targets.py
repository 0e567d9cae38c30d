"""What targets are: padding, marked as ignored before, shifted against the inputs; micro-batches that are the same."""

from collections.abc import Iterator, Sequence

import numpy as np

from tightgrad_lab.audit.script.finding import Remark
from tightgrad_lab.audit.script.records import Backward, Ledger, LossCall
from tightgrad_lab.audit.script.windows import Window

FEW = 2
"""Targets, losses or windows below which nothing is said."""
SHARE = 0.01


def check_targets(ledger: Ledger, ranks: str) -> Iterator[Remark]:
    """Judge the targets of one rank's losses."""
    calls = [call for backward in ledger.backwards for call in backward.calls]
    yield from _counted(calls, [call.padding for call in calls], ranks, "padding")
    yield from _counted(calls, [call.aside for call in calls], ranks, "aside")
    yield from _shifted(ledger.backwards, ranks)
    for place, times in ledger.in_place.items():
        words = (
            f"data are changed in place, so that the next epoch is given the changed data (seen {times} times so far)"
        )
        cure = "change a copy: x = x.clone(), masked_fill instead of masked_fill_."
        yield Remark("changed data", words, place, ranks, cure, wrong=times > 1)


def _counted(calls: Sequence[LossCall], numbers: Sequence[int], ranks: str, kind: str) -> Iterator[Remark]:
    """Targets that nobody means to learn."""
    count, targets = sum(numbers), sum(call.targets for call in calls)
    if sum(number > 0 for number in numbers) < FEW or count < max(FEW, SHARE * targets):
        return
    call = next(call for call, number in zip(calls, numbers, strict=True) if number)
    share = f"{count / targets:.1%} of the targets that count ({count} of {targets})"
    if kind == "padding":
        cause = f"{share} are padding, which the loss does not ignore"
        cure = "give the loss ignore_index= with the value that targets are padded with, or set padded targets to -100."
        yield Remark("padding counts", cause, call.site, ranks, cure)
    else:
        cause = f"{share} were marked as ignored (-100) and are given another value before the loss"
        cure = "leave -100 in the labels, which cross_entropy ignores; replace it only in a copy that is decoded."
        yield Remark("ignored targets are back", cause, call.site, ranks, cure)


def _shifted(backwards: Sequence[Backward], ranks: str) -> Iterator[Remark]:
    """Targets that do not stand one place after the inputs."""
    known = [(backward, {call.lag for call in backward.calls if call.lag is not None}) for backward in backwards]
    known = [(backward, lags) for backward, lags in known if lags]
    if len(known) < FEW or any(lags != known[0][1] or len(lags) > 1 for _, lags in known):
        return
    (lag,) = known[0][1]
    call = next(call for call in known[0][0].calls if call.lag == lag)
    if lag > 1:
        often = "twice" if lag == 2 else f"{lag} times"
        cause = f"labels are shifted {often}: the target of a token stands {lag} places after it"
        cure = "shift once: give a model that shifts its labels itself (as Hugging Face's do) labels=input_ids."
        yield Remark("shifted twice", cause, call.site, ranks, cure)
    elif lag < 0:
        cause = "labels are shifted the wrong way: the target of a token is the token before it"
        yield Remark("shifted back", cause, call.site, ranks, "use x[:, :-1] as inputs and x[:, 1:] as targets.")
    elif not lag:
        cause = "labels are not shifted: the target of a token is the token itself"
        cause += "" if call.causal else ", which is right for an autoencoder only"
        cure = "use x[:, :-1] as inputs and x[:, 1:] as targets."
        yield Remark("not shifted", cause, call.site, ranks, cure, wrong=call.causal)


def check_batches(windows: Sequence[Window]) -> Iterator[Remark]:
    """Micro-batches of a window that are the same data."""
    longer = [one for one in windows if one.length > 1 and not any(step.closure for step in one.steps)]
    if len(longer) < FEW or not all(_all_same(one) for one in longer):
        return
    first = longer[0]
    prints = {tuple(call.print for call in one.backwards[0][0].calls) for one in longer}
    where = f"{first.ranks} rank{'s' if first.ranks > 1 else ''}, step {first.number + 1}"
    words = f"the {first.length} micro-batches of a step are the same data"
    if len(prints) > 1:
        words += ", other data in the next step: a buffer that is filled anew for each batch holds only the last one"
    cure = "copy what a loader gives before the next batch is drawn (x.clone()), or use each batch at once."
    place = first.backwards[0][0].place
    yield Remark("same micro-batch", words, place, where, cure, wrong=len(prints) > 1)


def _all_same(window: Window) -> bool:
    for own in window.backwards:
        first = own[0].gradient
        for other in own[1:]:
            if other.moved or other.gradient.keys() != first.keys() or not first:
                return False
            if not all(np.array_equal(other.gradient[number], first[number]) for number in first):
                return False
        if not any(values.any() for values in first.values()):
            return False
    return True
