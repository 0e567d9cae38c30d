"""A plain module: gradients lie where autograd puts them. What wrappers do otherwise, their adapters override."""

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads


class PlainAdapter:
    """Connects a module without a wrapper; with a collective of several ranks, each trains a replica of its own.

    Args:
        module: that is trained.
        collective: the data-parallel ranks.
        only: identities of the parameters that are trained; None trains all that require gradients.
    """

    reduces = False
    every_rank_runs = False
    marks_last = False
    divisor = 1
    remembered_shapes: Mapping[str, tuple[int, ...]] | None = None

    def __init__(self, module: nn.Module, collective: Collective, only: Set[int] | None = None) -> None:
        self.collective = collective
        self.parameters = trainable_parameters(module, only)
        self._talks_in_forward = has_synced_layers(module)

    @property
    def waits_in_forward(self) -> bool:
        """Tell whether a forward may wait for other ranks: in synchronised layers only."""
        return self._talks_in_forward

    @property
    def moves_gradients(self) -> bool:
        """Tell that nobody puts gradients elsewhere."""
        return False

    @property
    def needs_every_gradient(self) -> bool:
        """Tell that a parameter may be frozen between two windows."""
        return False

    @property
    def counts_writes(self) -> bool:
        """Tell that torch's counters can be relied on."""
        return True

    @property
    def holds_back(self) -> bool:
        """Tell that gradients may be taken at any time."""
        return False

    def take_called_modules(self) -> int | None:
        """Tell that no module waits for other ranks, or that they are not known."""
        return None

    def connect(self) -> None:
        """Prepare nothing: there is no wrapper."""

    def begin_window(self) -> None:
        """Leave everything as it is: there is no wrapper."""

    def micro_batch(self, index: int, count: int) -> AbstractContextManager[None]:
        """Hold nothing back, since nothing is synchronised."""
        return nullcontext()

    def before_backward(self) -> None:
        """Leave everything as it is: nobody waits."""

    def after_backward(self) -> None:
        """Leave everything as it is: nobody waits."""

    def leaves(self) -> Iterable[Tensor]:
        """Return the parameters of the module."""
        return self.parameters.values()

    def gradients(self) -> Iterable[tuple[str, Tensor | None]]:
        """Return name and `parameter.grad` of every parameter."""
        return ((name, parameter.grad) for name, parameter in self.parameters.items())

    def accumulated(self) -> Grads:
        """Return copies of every `parameter.grad`."""
        return {name: p.grad.detach().clone() for name, p in self.parameters.items() if p.grad is not None}

    def restore_accumulated(self, grads: Grads) -> None:
        """Put copies of `grads` back as `parameter.grad`; the other parameters have none."""
        for name, parameter in self.parameters.items():
            parameter.grad = grads[name].clone() if name in grads else None

    def scale_accumulated_(self, factor: float) -> None:
        """Multiply every `parameter.grad` in place."""
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad.detach().mul_(factor)

    def forget_window(self, *, is_complete: bool = False) -> None:
        """Leave everything as it is: a forward holds nothing."""

    def release(self) -> None:
        """Leave everything as it is: the module was not changed."""

    def sent_nbytes(self) -> int:
        """Return 0, since a plain module sends nothing."""
        return 0


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile's wrapper."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module whose parameters have the names that all wrappers share."""
    inner = unwrap_compiled(model)
    return inner.module if isinstance(inner, DistributedDataParallel) else inner


def trainable_parameters(module: nn.Module, only: Set[int] | None = None) -> dict[str, nn.Parameter]:
    """Return parameters that require gradients, each once (tied ones under their first name), in order of definition.

    Args:
        module: that has them.
        only: identities of those that count; None lets all count.
    """
    return {
        name.replace("_orig_mod.", ""): parameter
        for name, parameter in module.named_parameters(remove_duplicate=True)
        if parameter.requires_grad and (only is None or id(parameter) in only)
    }


def has_synced_layers(module: nn.Module) -> bool:
    """Tell whether a layer's forward waits for other ranks by itself, as synchronised batch normalisation."""
    return any(isinstance(layer, nn.SyncBatchNorm) for layer in module.modules())


def broadcast_tensors(tensors: Iterable[Tensor], collective: Collective) -> None:
    """Overwrite `tensors` with rank 0's, one message for each dtype. Collective: every rank must call it with the same
    shapes and dtypes.
    """
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            by_dtype.setdefault(tensor.dtype, []).append(tensor.detach())
    for group in by_dtype.values():
        flat = collective.broadcast_(torch.cat([tensor.reshape(-1) for tensor in group]))
        for tensor, piece in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(piece.view(tensor.shape))


@contextmanager
def adding_zero(leaves: Iterable[Tensor]) -> Iterator[None]:
    """Let a backward run, collectives and all, that adds exactly 0 to every leaf, also where it computes NaN."""
    handles = [leaf.register_hook(torch.zeros_like) for leaf in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
