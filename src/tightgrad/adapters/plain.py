"""What the pipeline asks of a wrapper, as a plain module answers it; other wrappers' adapters override what differs."""

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads


class Adapter:
    """Connects the pipeline to one kind of wrapper, and is the only code that touches it: this one to a module without
    a wrapper. With a collective of several ranks, each trains a replica of its own.

    Args:
        module: that is trained.
        collective: the data-parallel ranks.
        only: identities of the parameters that are trained; None trains all that require gradients.

    Attributes:
        collective: the data-parallel ranks.
        parameters: the trainable ones by name, each once, in the same order on every rank and under every wrapper.
    """

    reduces = False
    """Whether gradients are summed over ranks within backward, by the wrapper or by what it hands them to."""
    every_rank_runs = False
    """Whether a window's backward only works if every rank runs as many micro-batches."""
    marks_last = False
    """Whether a window's last micro-batch has to be known as the last before its forward."""
    divisor = 1
    """What the wrapper divides its sum by; losses are multiplied by it. 1 if it divides by nothing."""
    remembered_shapes: Mapping[str, tuple[int, ...]] | None = None
    """Shapes of what is remembered of each parameter; None where they are the parameters' own, the same on any number
    of ranks.
    """

    def __init__(self, module: nn.Module, collective: Collective, only: Set[int] | None = None) -> None:
        self.collective = collective
        self.parameters = trainable_parameters(module, only)
        self._talks_in_forward = has_synced_layers(module)

    @property
    def waits_in_forward(self) -> bool:
        """Tell whether `begin_window` or a forward may wait for the other ranks: here in synchronised layers only."""
        return self._talks_in_forward

    @property
    def moves_gradients(self) -> bool:
        """Tell whether the wrapper's next forward may itself put gradients elsewhere."""
        return False

    @property
    def needs_every_gradient(self) -> bool:
        """Tell whether a parameter that was trainable at attach may not be frozen later."""
        return False

    @property
    def counts_writes(self) -> bool:
        """Tell whether torch's counters tell of the usual writes into gradients."""
        return True

    @property
    def holds_back(self) -> bool:
        """Tell whether gradients of this window so far have not been reduced and are not to be taken yet."""
        return False

    def take_called_modules(self) -> int | None:
        """Return, once, a hash of the modules whose calls wait for other ranks, in the order of the window before; None
        where none wait, or they are not known.
        """
        return None

    def connect(self) -> None:
        """Prepare the wrapper, once, when ranks know that they do the same: no communication before it. Collective:
        every rank must call it.

        Raises:
            UnsupportedError: the wrapper cannot do what is asked.
        """

    def begin_window(self) -> None:
        """Prepare a window, once, before its first micro-batch. Collective: every rank must call it."""

    def micro_batch(self, index: int, count: int) -> AbstractContextManager[None]:
        """Return the context for forward and backward of micro-batch `index` of a window of `count`."""
        return nullcontext()

    def before_backward(self) -> None:
        """End the forward of a micro-batch: other ranks may be elsewhere in theirs."""

    def after_backward(self) -> None:
        """Finish the backward of a micro-batch: other ranks may wait for gradients that it has not given."""

    def leaves(self) -> Iterable[Tensor]:
        """Return the trainable parameters as autograd sees them, after a forward: a hook on one is given the gradient
        of this rank's micro-batch, before it is added to others or reduced.
        """
        return self.parameters.values()

    def gradients(self) -> Iterable[tuple[str, Tensor | None]]:
        """Return the places where gradients of a window are kept, by the name of their parameter, in the same order
        each time; a parameter may have several. To be read only.
        """
        return ((name, parameter.grad) for name, parameter in self.parameters.items())

    def accumulated(self) -> Grads:
        """Return copies of this rank's gradients in mid-window, by name."""
        return {name: p.grad.detach().clone() for name, p in self.parameters.items() if p.grad is not None}

    def restore_accumulated(self, grads: Grads) -> None:
        """Put back copies of what `accumulated` gave, before the next micro-batch's forward; the other parameters have
        no gradient.
        """
        for name, parameter in self.parameters.items():
            parameter.grad = grads[name].clone() if name in grads else None

    def scale_accumulated_(self, factor: float) -> None:
        """Multiply this rank's gradients of the micro-batches so far, in place, before the window's last backward or,
        where that does not reduce, after it.
        """
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                parameter.grad.detach().mul_(factor)

    def forget_window(self, *, is_complete: bool = False) -> None:
        """Drop a window in its middle: a forward may have run whose backward will not. Collective: every rank must call
        it.

        Args:
            is_complete: whether the window's last backward has run on this rank.
        """

    def release(self) -> None:
        """Leave the model as a loop without a pipeline expects it; called between windows, once."""

    def sent_nbytes(self) -> int:
        """Return the bytes of gradient that the wrapper itself sent from this rank since the last call."""
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
