"""Is a batch's loss the weighted mean of its halves' losses? Asked once, before the first backward."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tightgrad.accumulate.weights import Weight
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Collective

TOLERANCE = 1e-3
LOW_TOLERANCE = 5e-2  # a bfloat16 forward gives other roundings for half a batch
LOW = (torch.float16, torch.bfloat16)

Batch = dict[str, Any]


def check_loss(
    loss_of: Callable[[Batch], Tensor],
    weight: Weight,
    batches: Iterable[Any],
    model: nn.Module,
    *,
    reduction: str = "mean",
    low_precision: bool = False,
) -> None:
    """Compare the loss of one batch with those of its halves, without gradients and without dropout. Of the batches
    that can be cut, the one whose halves weigh most differently is taken; if there is none, nothing is checked.

    Args:
        loss_of: gives the loss of a batch; must not keep what it is given.
        weight: what a batch counts.
        batches: of one window.
        model: whose mode and random numbers are left as they were.
        reduction: of the loss, "mean" or "sum".
        low_precision: whether forward computes in 16 bits.

    Raises:
        UsageError: the losses do not add up as the weights say.
    """
    halved = [(batch, halves(batch)) for batch in batches]
    weighed = [(abs(_unevenness(weight, parts)), batch, parts) for batch, parts in halved if parts]
    if not weighed:
        return
    _, batch, parts = max(weighed, key=lambda row: row[0])
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=_devices(model)):
            whole, *pieces = (float(loss_of(dict(part))) for part in (batch, *parts))
    finally:
        for module, mode in training.items():
            module.training = mode
    counts = [_number(weight(part)) for part in parts]
    if reduction == "sum":
        expected = sum(pieces)
    else:
        terms = [loss * count for loss, count in zip(pieces, counts, strict=True) if count]
        expected = sum(terms) / sum(counts) if sum(counts) else whole
    low = low_precision or any(parameter.dtype in LOW for parameter in model.parameters())
    if abs(whole - expected) > (LOW_TOLERANCE if low else TOLERANCE) * max(abs(whole), 1e-6):
        raise UsageError(
            f"the loss of a batch is {whole:.6g}, but its halves have {pieces[0]:.6g} and {pieces[1]:.6g} and count "
            f"{counts[0]:g} and {counts[1]:g} items, which makes {expected:.6g}: the loss is not averaged over these "
            "items, and micro-batches would not add up to the big batch. Pass TightTrainer(weight=lambda batch: ...) "
            "with the number that it is averaged over; with a weight of your own nothing is checked."
        )


def halves(batch: Any) -> Sequence[Batch]:
    """The two halves of a mapping whose tensors all have the same first dimension; nothing if it cannot be cut."""
    if not isinstance(batch, Mapping):
        return ()
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    sizes = {tensor.shape[0] if tensor.dim() else 0 for tensor in tensors}
    if len(sizes) != 1 or min(sizes) < 2:
        return ()
    middle = min(sizes) // 2
    return [
        {name: value[part] if isinstance(value, Tensor) else value for name, value in batch.items()}
        for part in (slice(None, middle), slice(middle, None))
    ]


def on_every_rank(check: Callable[[], None], collective: Collective) -> None:
    """Run a check that one rank alone may fail. Collective: every rank must call it.

    Raises:
        UsageError: on every rank, if the check has failed on any.
    """
    failure: Exception | None = None
    try:
        check()
    except Exception as error:
        failure = error
    failed = torch.tensor([failure is not None], dtype=torch.int64, device=collective.control_device)
    ranks = collective.all_gather(failed).view(-1).nonzero().view(-1).tolist()
    if failure is not None:
        raise failure
    if ranks:
        raise UsageError(f"the check of the loss failed on rank {', '.join(map(str, ranks))}, which says why.")


def _devices(model: nn.Module) -> list[torch.device]:
    return list({parameter.device for parameter in model.parameters() if parameter.is_cuda})


def _unevenness(weight: Weight, parts: Sequence[Batch]) -> float:
    first, second = (_number(weight(part)) / _num_samples(part) for part in parts)
    return first - second


def _num_samples(part: Batch) -> int:
    return next(len(value) for value in part.values() if isinstance(value, Tensor))


def _number(weight: Any) -> float:
    return float(weight)
