"""What belongs to a loop besides its gradients: who holds what, schedules, samplers, modes, copies of the weights."""

from collections.abc import Iterator, Sequence

import numpy as np

from tightgrad_lab.audit.script.finding import Remark
from tightgrad_lab.audit.script.records import Ledger
from tightgrad_lab.audit.script.windows import Window

NAMED = 4
FEW = 2
"""Windows, or losses, below which nothing is said of all of them."""


def check_routine(ledgers: Sequence[Ledger], windows: Sequence[Sequence[Window]]) -> Iterator[Remark]:
    """Judge one run.

    Args:
        ledgers: of all ranks, rank 0 first.
        windows: of each optimizer.
    """
    first = ledgers[0]
    ranks = f"{len(ledgers)} rank{'s' if len(ledgers) > 1 else ''}"
    place = first.steps[0].place
    yield from _held(first, windows, ranks)
    for own in windows:
        yield from _copied(own)
        yield from _scheduled(first, own)
        if len(ledgers) > 1 and not first.sharded:
            yield from _same_data(own)
    yield from _modes(first, ranks)
    moved = sum(step.frozen > 0 for step in first.steps)
    if moved:
        count = max(step.frozen for step in first.steps)
        cause = f"frozen parameters change: {count} that require no gradient, at {moved} of {len(first.steps)} steps"
        cure = "leave frozen parameters out of the optimizer, or clear their gradients with set_to_none=True."
        yield Remark("frozen", f"{cause} (a gradient from before, weight decay, momentum)", place, ranks, cure)
    yield from _undefined(first, ranks)
    for clip in first.clips:
        if not clip.parameters and any(step.taken for step in first.steps):
            cause = "a clip does nothing: no optimizer holds any of the parameters that it is given"
            cure = "give it list(model.parameters()); a generator is empty once an optimizer has read it."
            yield Remark("clip of nothing", cause, clip.place, ranks, cure)
            break
    if first.repeated:
        cause = "every epoch draws its batches in the same order: DistributedSampler shuffles by its epoch, which stays"
        cure = "call sampler.set_epoch(epoch) when an epoch begins."
        yield Remark("same order", cause, first.repeated, ranks, cure)
    if first.constants:
        cause = "a term of the loss has no gradient: it was made of torch.autograd.grad without create_graph"
        cure = "call torch.autograd.grad(..., create_graph=True) for a penalty on a gradient."
        yield Remark("no graph", cause, first.constants, ranks, cure)
    kept, past = first.graphs
    if past >= FEW and 2 * kept > past:
        words = (
            f"{kept} of {past} losses of steps gone by still have their graph, which takes memory at every step: add "
            "up loss.item() or loss.detach()"
        )
        yield Remark("graph kept", words, first.backwards[0].place, ranks, wrong=False)


def listed(names: Sequence[str]) -> str:
    """Names for people."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _held(ledger: Ledger, windows: Sequence[Sequence[Window]], ranks: str) -> Iterator[Remark]:
    """Parameters that train nowhere."""
    place = ledger.steps[0].place
    fresh = [name for name, loaded in ledger.unheld.items() if not loaded]
    loaded = [name for name, is_loaded in ledger.unheld.items() if is_loaded]
    if fresh:
        cause = f"{len(fresh)} parameters get a gradient and are held by no optimizer, so that they stay as they began"
        cure = "give them to the optimizer, or call requires_grad_(False) if they are to stay."
        yield Remark("no optimizer", f"{cause}: {listed(fresh)}", place, ranks, cure)
    if loaded:
        words = (
            f"{len(loaded)} parameters with loaded values get a gradient and are held by no optimizer: {listed(loaded)}"
            " (requires_grad_(False) would spare it)"
        )
        yield Remark("left out", words, place, ranks, wrong=False)
    for own in windows:
        steps = [window.steps[0] for window in own]
        without = [
            window.steps[0].parameters
            and window.steps[0].missing == len(window.steps[0].parameters)
            and not window.backwards[0]
            for window in own
        ]
        if steps and all(without) and not any(step.closure for step in steps):
            cause = f"no parameter of {steps[0].kind} gets a gradient: it holds others than those that the loss reaches"
            cure = "make the optimizer after the model is what it will be; look for a detach or no_grad before them."
            yield Remark("nothing to train", cause, steps[0].place, ranks, cure)


def _copied(windows: Sequence[Window]) -> Iterator[Remark]:
    """An average of the weights that goes on at every micro-batch."""
    longer = [window for window in windows if window.length > 1]
    found = [window for window in longer if all(backward.copied for backward in window.backwards[0][1:])]
    if len(found) >= FEW and 2 * len(found) > len(longer):
        length = found[0].length
        cause = f"an average (or copy) of the weights is updated {length} times a step: after every micro-batch"
        cure = "update it once, after optimizer.step."
        yield Remark("copied", cause, found[0].backwards[0][0].place, _where(found[0]), cure)


def _scheduled(ledger: Ledger, windows: Sequence[Window]) -> Iterator[Remark]:
    """A scheduler that goes on at every micro-batch, or at a step that was left out."""
    longer = [window for window in windows if window.length > 1]
    found = None
    for window in longer[:-1]:  # a script is stopped in its last step
        last = window.steps[0].backwards
        own = [one for one in ledger.schedules if last - window.length < one.backwards <= last]
        if len({one.backwards for one in own}) < window.length:
            found = None
            break
        found = own[0]
    if found is not None and len(longer) >= FEW:
        length = longer[0].length
        cause = f"{found.kind} goes on {length} times a step: after every micro-batch"
        cure = "call scheduler.step() once, after optimizer.step()."
        counts = found.horizon is not None and found.batches is not None
        wrong = counts and bool((found.horizon or 0) % (found.batches or 1))
        if wrong:
            cause += f", and is over after {found.horizon} of them"
        elif counts:
            cause += f", and counts them: {found.horizon} in all"
        else:
            cause += ", which is right only if it is made for that many"
        yield Remark("schedule", cause, found.place, _where(longer[0]), cure, wrong=wrong)
    late = [number for number, step in enumerate(ledger.steps, start=1) if step.skipped]
    after = [one for one in ledger.schedules if one.steps in late]
    if after:
        words = f"{after[0].kind} goes on at {len(after)} steps that GradScaler left out, since gradients overflowed"
        yield Remark("schedule of skipped steps", words, after[0].place, _where(windows[0]), wrong=False)


def _same_data(windows: Sequence[Window]) -> Iterator[Remark]:
    """Ranks whose gradients are equal before they are averaged."""
    pairs = [
        (one.gradient, other.gradient)
        for window in windows
        for backwards in window.backwards[1:]
        for one, other in zip(window.backwards[0], backwards, strict=False)
    ]
    if len(windows) < FEW or not pairs:
        return
    for one, other in pairs:
        if one.keys() != other.keys() or not all(np.array_equal(one[key], other[key]) for key in one):
            return
    if any(values.any() for one, _ in pairs for values in one.values()):
        cause = "all ranks compute the same gradient: each sees the same data, so that more ranks change nothing"
        cure = "give each rank its own part: a DistributedSampler, or a seed (offset) of its own."
        first = windows[0].backwards[0][0]  # numbers that are drawn on the spot may only stand for data
        yield Remark("same data", cause, first.place, _where(windows[0]), cure, wrong=first.epoch > 0)


def _undefined(ledger: Ledger, ranks: str) -> Iterator[Remark]:
    """Losses that are NaN."""
    found = [(place, one) for place, one in enumerate(ledger.backwards) if one.undefined]
    if found:
        place, one = found[0]
        cause = f"the loss of {len(found)} of {len(ledger.backwards)} backwards is NaN, first of backward {place + 1}"
        cure = "look for 0/0, such as the mean of no target: divide by clamp(min=1), or leave such a micro-batch out."
        yield Remark("undefined", cause, one.place, ranks, cure)


def _modes(ledger: Ledger, ranks: str) -> Iterator[Remark]:
    """Dropout that was on, and then stays off."""
    seen = [(backward, *backward.dropout) for backward in ledger.backwards if any(backward.dropout)]
    begun = next((place for place, (_, on, _) in enumerate(seen) if not on), len(seen))
    rest = seen[begun:]
    if begun and len(rest) >= FEW and not any(on for _, on, _ in rest):
        cause = (
            f"dropout is on in the first {begun} backwards and off in the {len(rest)} after: model.eval() was called"
        )
        cure = "call model.train() when training goes on after an evaluation."
        yield Remark("eval mode", cause, rest[0][0].place, ranks, cure)


def _where(window: Window) -> str:
    return f"{window.ranks} rank{'s' if window.ranks > 1 else ''}, step {window.number + 1}"
