"""What the pipeline asks of a wrapper."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from tightgrad.core.collective import Collective
from tightgrad.core.types import Grads


class Adapter(Protocol):
    """Connects the pipeline to one kind of wrapper: the only code that touches it. Does no maths."""

    @property
    def collective(self) -> Collective:
        """Return the collective of the data-parallel ranks."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return trainable parameters by name, each once, in the same order on every rank and under every wrapper."""

    @property
    def reduces(self) -> bool:
        """Tell whether gradients are summed over ranks within backward, by the wrapper or by what it hands them to."""

    @property
    def every_rank_runs(self) -> bool:
        """Tell whether a window's backward only works if every rank runs as many micro-batches."""

    @property
    def marks_last(self) -> bool:
        """Tell whether a window's last micro-batch has to be known as the last before its forward."""

    @property
    def waits_in_forward(self) -> bool:
        """Tell whether `begin_window` or a forward of the next window may wait for the other ranks."""

    @property
    def holds_back(self) -> bool:
        """Tell whether gradients of this window so far have not been reduced and are not to be taken yet."""

    @property
    def remembered_shapes(self) -> Mapping[str, tuple[int, ...]] | None:
        """Return the shapes of what is remembered of each parameter; None where they are the parameters' own, the same
        on any number of ranks.
        """

    @property
    def divisor(self) -> int:
        """Return what the wrapper divides its sum by; losses are multiplied by it. 1 if it divides by nothing."""

    def take_called_modules(self) -> int | None:
        """Return, once, a hash of the modules whose calls wait for other ranks, in the order of the window before; None
        where none wait, or they are not known.
        """

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

    def before_backward(self) -> None:
        """End the forward of a micro-batch: other ranks may be elsewhere in theirs."""

    def after_backward(self) -> None:
        """Finish the backward of a micro-batch: other ranks may wait for gradients that it has not given."""

    def leaves(self) -> Iterable[Tensor]:
        """Return the trainable parameters as autograd sees them, after a forward: a hook on one is given the gradient
        of this rank's micro-batch, before it is added to others or reduced.
        """

    def gradients(self) -> Iterable[tuple[str, Tensor | None]]:
        """Return the places where gradients of a window are kept, by the name of their parameter, in the same order
        each time; a parameter may have several. To be read only.
        """

    @property
    def needs_every_gradient(self) -> bool:
        """Tell whether a parameter that was trainable at attach may not be frozen later."""

    @property
    def moves_gradients(self) -> bool:
        """Tell whether the wrapper's next forward may itself put gradients elsewhere."""

    @property
    def counts_writes(self) -> bool:
        """Tell whether torch's counters tell of the usual writes into gradients."""

    def accumulated(self) -> Grads:
        """Return copies of this rank's gradients in mid-window, by name."""

    def restore_accumulated(self, grads: Grads) -> None:
        """Put back what `accumulated` gave, before the next micro-batch's forward."""

    def scale_accumulated_(self, factor: float) -> None:
        """Multiply this rank's gradients of the micro-batches so far, before the window's last backward or, where that
        does not reduce, after it.
        """

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
