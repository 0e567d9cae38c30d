"""Is the loss of a batch the weighted mean of the losses of its parts? Asked before anything is trained on it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tightgrad.accumulate.additive import WHAT_IS_NOT_ADDITIVE, Forward, Found, compare_with_halves
from tightgrad.accumulate.losses import checked_losses
from tightgrad.accumulate.settings import LOSS_REDUCTIONS
from tightgrad.accumulate.split import fresh
from tightgrad.accumulate.trial_forward import left_as_it_was, own_statistics, without_graph
from tightgrad.accumulate.weights import DefaultWeight, Weight, batch_weights
from tightgrad.adapters.parts.fsdp2_torch import is_fsdp2
from tightgrad.adapters.parts.trial import without_reduction
from tightgrad.adapters.plain import trainable_parameters, unwrap, unwrap_compiled
from tightgrad.collectives import SingleCollective, TorchCollective
from tightgrad.core.check import check_choice
from tightgrad.core.notices import named
from tightgrad.core.placement import is_dtensor
from tightgrad.core.protocols import Collective

MOST_NAMED = 5

LossOf = Callable[[Any], Tensor | Mapping[str, Tensor]]

_EXACT = (
    "For a contrastive loss pipe.run_cached(window, encode, loss) gives the gradient of the big batch "
    "(docs/contrastive.md)."
)


@dataclass(frozen=True)
class LossCheck:
    """Says whether a loss is a weighted mean of per-sample terms. True in an `if` only if it is known to be one.

    Attributes:
        is_additive: None if it cannot be told.
        message: what was seen, and what to do about it.
        loss_difference: between the loss of the batch and that from its halves, relative.
        gradient_difference: the same of their gradients, by norm; None where they were not compared.
    """

    is_additive: bool | None
    message: str
    loss_difference: float | None = None
    gradient_difference: float | None = None

    def __bool__(self) -> bool:
        return self.is_additive is True


def check_loss(
    model: nn.Module,
    loss_of: LossOf,
    batch: Any,
    *,
    weight: Weight | None = None,
    loss_reduction: str = "mean",
    collective: Collective | None = None,
) -> LossCheck:
    """Compare the loss of a batch, and its gradient, with those of its halves: is it their weighted mean?

    Only then is the gradient of accumulated micro-batches that of one big batch. Nothing is changed: gradients,
    buffers, training modes and the global random numbers are as before. A batch whose samples weigh all the same shows
    less than a ragged one.

    Dropout: where two forwards of the batch differ, the model is put into evaluation mode for the comparison. If they
    differ there as well (noise that is drawn in the forward), it cannot be told, and the message says so.

    Args:
        model: in the mode that it is trained in, with or without a wrapper. If it is in DistributedDataParallel or
            `fully_shard`, every rank must call this, and all ranks find the same. Under `fully_shard` losses are
            compared and gradients are not.
        loss_of: gives a batch's loss as `pipe.backward` takes it: a scalar, or several by name.
        batch: of at least two samples, with all tensors cut along their first dimension.
        weight: what a batch counts, as `attach` takes it; None counts samples, and asks where these are in doubt.
        loss_reduction: "mean" if losses are means over their weight, "sum" if they are sums.
        collective: the ranks that compare; None takes those of the wrapper, or this process alone.

    Raises:
        ConfigError: the batch does not show what it weighs, and no `weight` is given.
        UsageError: `loss_of` gives no scalar; or the look failed on another rank.

    Examples:
        >>> import torch, tightgrad as tg
        >>> model = torch.nn.Linear(4, 3)
        >>> batch = (torch.randn(8, 4), torch.randint(3, (8,)))
        >>> mean = lambda batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> tg.check_loss(model, mean, batch).is_additive
        True
        >>> def infonce(batch):
        ...     pairs = model(batch[0]) @ model(batch[0]).T
        ...     return torch.nn.functional.cross_entropy(pairs, torch.arange(len(pairs)))
        >>> tg.check_loss(model, infonce, batch).is_additive
        False
    """
    check_choice("loss_reduction", loss_reduction, LOSS_REDUCTIONS)
    names: tuple[str, ...] = ("loss",)
    weigh = weight or DefaultWeight()

    def prepare() -> None:
        nonlocal names
        with left_as_it_was(model):
            loss = without_graph(lambda: loss_of(fresh(batch)))
        names = tuple(map(str, loss)) if isinstance(loss, Mapping) else names
        batch_weights(batch, weigh, names)  # asks, where the batch does not show what it counts

    forward = Forward(
        lambda piece: checked_losses(loss_of(piece), names),
        lambda piece: batch_weights(piece, weigh, names),
        model,
        loss_reduction == "mean",
        prepare=prepare,
    )
    return look_at_loss([batch], forward, collective or _ranks_of(model))


def look_at_loss(batches: Sequence[Any], forward: Forward, collective: Collective) -> LossCheck:
    """Compare one of `batches` with its halves, losses and, where they are to be had, gradients. Collective: every rank
    must call it.

    Args:
        batches: what is at hand; may be none.
        forward: how a batch is evaluated.
        collective: the ranks.
    """
    model = forward.model
    is_sharded = is_fsdp2(unwrap_compiled(model))
    trained = list(trainable_parameters(unwrap(model)).values())
    if not is_sharded and not any(map(is_dtensor, trained)):
        forward = replace(forward, parameters=trained)
    with without_reduction(model):
        found = compare_with_halves(batches, forward, collective, in_step=is_sharded)
    normalising = own_statistics(model)
    if normalising:
        also = f" Apart from that, {found.message}." if found.kind == "differs" else ""
        return LossCheck(False, batch_norm_message(normalising) + also, found.loss, found.gradient)
    return _told(found)


def batch_norm_message(layers: Sequence[str]) -> str:
    """Say which layers normalise by the batch, and what to do."""
    return (
        f"BatchNorm in training mode ({len(layers)}: {named(layers, MOST_NAMED)}) normalises "
        "each micro-batch by its own mean and variance, so the accumulated gradient is not that of one big batch. Take "
        "GroupNorm or LayerNorm, or freeze the statistics by calling .eval() on these layers."
    )


def _told(found: Found) -> LossCheck:
    """What was found, in sentences."""
    if found.kind == "additive":
        gradients = "" if found.gradient is None else f", its gradient by {found.gradient:.1g}"
        return LossCheck(
            True,
            "The loss is a weighted mean (or sum) of per-sample terms: the loss of a batch differs from that of its "
            f"halves by {found.loss:.1g} of it{gradients}, which is rounding.",
            found.loss,
            found.gradient,
        )
    if found.kind == "differs":
        return LossCheck(
            False,
            f"The loss is not what accumulation takes it for: {found.message}, so micro-batches do not add up to the "
            f"gradient of the big batch. {found.cure or f'{WHAT_IS_NOT_ADDITIVE} {_EXACT}'}",
            found.loss,
            found.gradient,
        )
    if found.kind == "random":
        return LossCheck(
            None,
            f"Whether the loss is a weighted mean of per-sample terms cannot be told: {found.message}. Draw the noise "
            "where the batch is made, so that it is cut with the batch, or compare with the noise switched off.",
        )
    return LossCheck(
        None,
        f"Whether the loss is a weighted mean of per-sample terms cannot be told: {found.message.rstrip('.')}.",
    )


def _ranks_of(model: nn.Module) -> Collective:
    inner = unwrap_compiled(model)
    if isinstance(inner, DistributedDataParallel):
        return TorchCollective(inner.process_group)
    return TorchCollective() if is_fsdp2(inner) else SingleCollective()
