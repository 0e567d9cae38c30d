"""Is the loss a weighted mean of per-sample terms? The loss of a batch is compared with those of its halves.

    (n1 + n2) L(batch) = n1 L(first half) + n2 L(second half)          for means; without n1 and n2 for sums

The gradients are compared as well where they are asked for: a loss may be 0 for the batch and for its halves, and its
gradients differ (advantages that are normalised within the batch). Parameters have no gradient afterwards that they had
not before; buffers, training modes and random numbers are put back.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.accumulate.split import batch_size, fresh, split_batch, two_halves
from tightgrad.accumulate.trial_forward import ForwardWatch, left_as_it_was, without_graph
from tightgrad.core.collective import largest_over_ranks, raise_on_every_rank
from tightgrad.core.errors import ConfigError, UnsupportedError, UsageError
from tightgrad.core.memory import is_out_of_memory
from tightgrad.core.notices import warn
from tightgrad.core.protocols import Collective

ROUNDINGS = 8  # of the loss's own dtype, where that is coarser
SMALL = 1e-2  # sums below it are compared by their difference, and not in proportion
GRADIENT = 4  # a gradient is rounded more often than a loss

Weights = Mapping[str, float]
Kind = Literal["uncut", "additive", "random", "differs"]
KINDS: tuple[Kind, ...] = ("uncut", "additive", "random", "differs")  # later ones outweigh earlier ones
WHAT_IS_NOT_ADDITIVE = (
    "Losses that compare the samples of a batch (InfoNCE, balance terms, advantages normalised within the batch) are "
    "no weighted mean of per-sample terms; for one that is, weight(batch) must return what it is averaged over."
)
RANDOM = "two forwards of the same samples give different losses, also in evaluation mode"


@dataclass(frozen=True)
class Forward:
    """How a batch is evaluated.

    Args:
        losses_of: gives a batch's losses, scalars by name.
        weigh: what a batch counts for each loss.
        model: that the forward runs.
        is_mean: whether losses are means over their weight, and not sums.
        parameters: whose gradients are compared as well; none compares the losses only.
        prepare: called first.
        weigh_whole: what the batch itself counts; None takes what its halves weigh together, as a window's N is.
    """

    losses_of: Callable[[Any], Mapping[str, Tensor]]
    weigh: Callable[[Any], Weights]
    model: nn.Module
    is_mean: bool
    parameters: Sequence[Tensor] = ()
    prepare: Callable[[], object] = lambda: None
    weigh_whole: Callable[[Any], Weights] | None = None


@dataclass(frozen=True)
class Found:
    """Tells what came of the comparison, on all ranks.

    Attributes:
        kind: "additive"; "differs"; "random", if two forwards of one batch differ; "uncut", if no batch has halves.
        message: what was seen, as a part of a sentence.
        cure: what to do about it, in sentences; empty where it is not known.
        loss: largest relative difference of a loss.
        gradient: relative difference of the gradients; None where they were not compared.
    """

    kind: Kind
    message: str = ""
    loss: float = 0.0
    gradient: float | None = None
    cure: str = ""


def compare_with_halves(
    batches: Sequence[Any], forward: Forward, collective: Collective, *, pieces: int = 1, in_step: bool = False
) -> Found:
    """Compare the loss of one batch with those of its halves. Collective: every rank must call it.

    Args:
        batches: the one whose halves weigh most differently is taken.
        forward: how it is evaluated.
        collective: the ranks, which all find the same.
        pieces: how many parts the batch is cut into before one of them is taken as the batch.
        in_step: whether ranks wait for each other in the forward, so that all must run as many.

    Raises:
        UsageError: the forward failed on another rank.
        Exception: what it raised here, once the other ranks know.
    """

    def agree(here: bool) -> bool:
        return bool(*largest_over_ranks([here], collective))

    error: Exception | None = None
    found = Found("uncut")
    try:
        forward.prepare()
        found = _found(batches, pieces, forward, agree if in_step else bool)
    except Exception as raised:
        error = raised
    raise_on_every_rank(
        error, lambda rank: UsageError(f"the check of the loss failed on rank {rank}, which says why."), collective
    )
    numbers = [KINDS.index(found.kind), found.loss, -1.0 if found.gradient is None else found.gradient]
    row = torch.tensor(numbers, dtype=torch.float64, device="cpu").to(collective.control_device)
    rows = collective.all_gather(row).cpu().tolist()
    rank, (index, loss, gradient) = max(enumerate(rows), key=lambda item: item[1])
    kind = KINDS[int(index)]
    message = found.message
    if kind != found.kind:
        differs = f"the loss of a batch on another rank ({rank}) is not that of its halves"
        message = differs if kind == "differs" else RANDOM
    return Found(kind, message, loss, gradient if gradient >= 0 else None, found.cure)


def _found(batches: Sequence[Any], pieces: int, forward: Forward, agree: Callable[[bool], bool]) -> Found:
    """What this rank finds."""
    count = pieces
    while True:
        cut = _cut(batches, count, forward)
        try:
            with left_as_it_was(forward.model):
                return _compared(cut, batches, forward, agree)
        except Exception as error:
            if not is_out_of_memory(error) or agree is not bool:
                raise
            if not isinstance(cut, _Cut) or batch_size(cut.piece) < 4:
                return Found("uncut", "there is no memory for a batch of two samples")
        count *= 2


@dataclass(frozen=True)
class _Cut:
    piece: Any
    halves: Sequence[Any]
    unevenness: float


def _cut(batches: Sequence[Any], count: int, forward: Forward) -> "_Cut | str":
    """A piece of a batch, and its halves; or why there is none."""
    reason = "there is no batch"
    cuts = []
    for batch in batches:
        try:
            most = batch_size(batch) // 2
            pieces = split_batch(batch, min(count, most)) if most else []
            piece = next((piece for piece in pieces if all(forward.weigh(piece).values())), None)
            if piece is None:
                reason = "no batch has two samples with a weight above 0"
                continue
            piece, *halves = two_halves(piece)
            weights = [sum(forward.weigh(half).values()) / batch_size(half) for half in halves]
            cuts.append(_Cut(piece, halves, abs(weights[0] - weights[1])))
        except ConfigError as error:
            reason = str(error)
    return max(cuts, key=lambda cut: (cut.unevenness, batch_size(cut.piece)), default=reason)


def _compared(cut: "_Cut | str", batches: Sequence[Any], forward: Forward, agree: Callable[[bool], bool]) -> Found:
    """What differs. A rank that has nothing to compare runs as many forwards as the others if it waits for them."""
    if isinstance(cut, str):
        if agree is bool or not batches:
            runs: list[Any] = []
        else:
            runs = [batches[0]] * 3
    else:
        runs = [cut.piece, *cut.halves]
    if agree(bool(runs) and _is_random(runs[0], forward)):
        forward.model.eval()  # without dropout
        if agree(bool(runs) and _is_random(runs[0], forward)):
            return Found("random", RANDOM)
    if not runs:
        return Found("uncut", str(cut))
    with ForwardWatch() as watch:
        counts = [forward.weigh(half) for half in runs[1:]]
        together = {name: sum(row[name] for row in counts) for name in counts[0]}
        whole = _evaluated(runs[0], forward.weigh_whole(runs[0]) if forward.weigh_whole else together, forward)
    try:
        halves = [_evaluated(half, row, forward) for half, row in zip(runs[1:], counts, strict=True)]
    except Exception as error:  # it may know one size of batches only
        if is_out_of_memory(error):
            raise
        return Found("uncut", f"the loss of half a batch raises {type(error).__name__}: {error}")
    if isinstance(cut, str):
        return Found("uncut", cut)
    if not all(math.isfinite(total) for total, *_ in whole.sums.values()):
        return Found("uncut", "the loss is inf or NaN")
    tolerance = watch.tolerance(forward.model)
    num = batch_size(cut.piece)
    texts, losses = [], []
    for name in whole.sums:
        text, loss = _loss_difference(name, whole, halves, num, tolerance, forward.is_mean)
        texts.append(text)
        losses.append(loss)
    text = next(filter(None, texts), "")
    cure = _other_reduction(whole, halves, tolerance, forward.is_mean) if text else ""
    gradient = _gradient_difference(whole, halves)
    if not text and gradient is not None and gradient > GRADIENT * tolerance:
        text = (
            f"the gradient of {num} samples is not that of their two halves, by {gradient:.2g} of its norm, although "
            "the losses agree"
        )
    if text and watch.normalises_batch:
        text += "; batch_norm(training=True) normalises each micro-batch by its own mean and variance"
        cure = "Take GroupNorm or LayerNorm, or normalise by statistics that are frozen (training=False)."
    return Found("differs" if text else "additive", text, max(losses), gradient, cure)


def _is_random(batch: Any, forward: Forward) -> bool:
    once, again = (_detached(batch, forward) for _ in range(2))
    return any(not torch.equal(loss.nan_to_num(), again[name].nan_to_num()) for name, loss in once.items())


def _detached(batch: Any, forward: Forward) -> dict[str, Tensor]:
    losses = without_graph(lambda: forward.losses_of(fresh(batch)))
    return {name: loss.detach() for name, loss in losses.items()}


@dataclass(frozen=True)
class _Evaluated:
    """Each loss summed over its samples, what to divide it by for people to read, and the rounding of its dtype; the
    gradient of all of them.
    """

    sums: Mapping[str, tuple[float, float, float]]
    counts: Weights
    grads: list[Tensor] | None


def _evaluated(batch: Any, weights: Weights, forward: Forward) -> _Evaluated:
    with torch.set_grad_enabled(bool(forward.parameters)):
        losses = forward.losses_of(fresh(batch)) if forward.parameters else _detached(batch, forward)
        scaled = {name: loss * weights[name] if forward.is_mean else loss for name, loss in losses.items()}
        counted = [scaled[name] for name in losses if weights[name]]  # 0 x NaN is left out
        grads = _gradient(sum(counted[1:], start=counted[0]), forward.parameters) if counted else None
    sums = {}
    for name, loss in losses.items():
        divisor = weights[name] if forward.is_mean else 1.0
        sums[name] = (float(scaled[name].detach()) if weights[name] else 0.0, divisor, torch.finfo(loss.dtype).eps)
    return _Evaluated(sums, weights, grads)


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor] | None:
    """Not into `.grad`; None where there is none to be had in this way."""
    if not parameters or not loss.requires_grad:
        return None
    try:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return None
    grads: list[Tensor | None] = [*found]
    if all(grad is None for grad in grads):  # reentrant checkpointing hides its parameters
        return None
    return [
        torch.zeros_like(p) if grad is None else grad if grad.layout is torch.strided else grad.to_dense()
        for grad, p in zip(grads, parameters, strict=True)
    ]


def _loss_difference(
    name: str, whole: _Evaluated, halves: Sequence[_Evaluated], num: int, tolerance: float, is_mean: bool
) -> tuple[str, float]:
    """What differs, in words, and by how much in proportion."""
    loss, weight, rounding = whole.sums[name]
    parts = [half.sums[name][0] for half in halves]
    difference = _relative(loss, parts)
    if difference <= max(tolerance, ROUNDINGS * rounding):
        return "", difference
    text = (
        f"the {'mean' if is_mean else 'sum'} {name} of {num} samples is {loss / weight:.4g}, and "
        f"{sum(parts) / weight:.4g} from its two halves"
    )
    return text, difference


def _relative(whole: float, parts: Sequence[float]) -> float:
    return abs(whole - sum(parts)) / max(abs(whole), sum(map(abs, parts)), SMALL)


def _other_reduction(whole: _Evaluated, halves: Sequence[_Evaluated], tolerance: float, is_mean: bool) -> str:
    """What to write if all losses are reduced the other way; nothing if they are not."""
    others = []
    for name, (loss, weight, _) in whole.sums.items():
        parts = [half.sums[name][:2] for half in halves]
        if is_mean:
            others.append(_relative(loss / weight, [part / count if count else 0.0 for part, count in parts]))
        else:
            counts = [half.counts[name] for half in halves]
            means = [part * count for (part, _), count in zip(parts, counts, strict=True)]
            others.append(_relative(loss * whole.counts[name], means))
    if any(other > tolerance for other in others):
        return ""
    is_now, found = ("mean", "sum") if is_mean else ("sum", "mean")
    return (
        f'The losses of the halves add up as a {found} does: write Accumulate(loss_reduction="{found}"), or let the '
        f"loss be a {is_now}."
    )


def _gradient_difference(whole: _Evaluated, halves: Sequence[_Evaluated]) -> float | None:
    grads = [evaluated.grads for evaluated in (whole, *halves) if evaluated.grads is not None]
    if len(grads) <= len(halves):
        return None
    norms = [_norm(one) for one in grads]
    if not math.isfinite(norms[0]):
        return None
    left = grads[0]
    for one in grads[1:]:
        left = [*torch._foreach_sub(left, one)]
    scale = max(norms[0], sum(norms[1:]))
    return _norm(left) / scale if scale else 0.0


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(_exact(tensor))) for tensor in tensors))


def _exact(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in LOW_PRECISION else tensor


def check_additive(batches: Sequence[Any], pieces: int, forward: Forward, collective: Collective) -> None:
    """Look at the loss before batches are cut into `pieces` after running out of memory.

    Collective: every rank must call it.

    Raises:
        UnsupportedError: on every rank, if the loss of a piece is not that of its halves on any.
    """
    forward = replace(forward, weigh_whole=forward.weigh)  # the window's N is counted already
    found = compare_with_halves(batches, forward, collective, pieces=pieces)
    if found.kind == "differs":
        raise UnsupportedError(
            f"out of memory, and the batch cannot be split: {found.message}, so smaller micro-batches would train on "
            f'another gradient. {WHAT_IS_NOT_ADDITIVE} Take smaller batches from the loader, or on_oom="raise".'
        )
    if found.kind == "random" and collective.rank == 0:
        warn(
            "out of memory: batches are split, and whether the loss is a weighted mean of per-sample terms could not "
            f"be checked, since {RANDOM}. The gradient is that of the whole batch only if it is.",
            stacklevel=4,
        )
