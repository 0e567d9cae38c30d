"""What the pipeline finds out about the loss before it relies on it, and what it says where it cannot."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tightgrad.accumulate import Accumulate, DefaultWeight, Window
from tightgrad.accumulate.additive import Forward, check_additive
from tightgrad.accumulate.loss_look import LossLook
from tightgrad.accumulate.losses import checked_losses
from tightgrad.accumulate.trial_forward import is_compiled
from tightgrad.accumulate.weights import batch_weights
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.notices import warn
from tightgrad.core.protocols import Adapter
from tightgrad.pipeline.cached import check_encodes_alone
from tightgrad.pipeline.check_loss import LossCheck, look_at_loss

LossOf = Callable[[Any], Tensor | Mapping[str, Tensor]]
Weigh = Callable[[Any], Mapping[str, float]]
_STACK = 3  # the user's line, above the pipeline's method


class LossPremise:
    """Checks, in the first window, that the loss is a weighted mean of per-sample terms.

    Args:
        model: with its wrapper.
        adapter: of the model.
        accumulate: whose windows are run.
        check: gives a batch's loss, for the first window's check; None checks what `pipe.run` is given.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, accumulate: Accumulate, check: LossOf | None) -> None:
        self._model, self._adapter, self._accumulate = model, adapter, accumulate
        self._check = check
        # Before it is split after running out of memory, a loss is looked at then.
        self._is_known = not replace(accumulate, on_oom="raise").several_backwards
        self._encodes_alone = self._is_known
        self._runs = False
        self._look = LossLook(model, speaks=adapter.collective.rank == 0)

    def on_window(self, window: Window[Any], weigh: Weigh | None) -> None:
        """Check the first window's loss with the function that `attach` was given, if it was given one. Collective.

        Args:
            window: not begun.
            weigh: what a batch counts; None counts samples.

        Raises:
            UnsupportedError: on every rank, if the loss is no weighted mean on any.
        """
        check, self._check = self._check, None
        if check is None or not window.begun_everywhere():
            return
        if weigh is None:
            samples = DefaultWeight()
            found = self._found(window, check, lambda batch: batch_weights(batch, samples, self._accumulate.losses))
        else:
            found = self._found(window, check, weigh)
        if found.is_additive is False:
            raise UnsupportedError(f"attach(..., check=) has looked at the loss. {found.message}")
        if found.is_additive is None and self._adapter.collective.rank == 0:
            warn(f"attach(..., check=) has looked at the loss. {found.message}", _STACK)
        self._is_known = True

    def on_run(self, window: Window[Any], loss_of: LossOf, weigh: Weigh) -> None:
        """Check the loss of the first window that is run, unless that has been done. Collective.

        Compiled models are left alone: other sizes of batches would be compiled for. So are windows that may run out of
        memory, whose loss is looked at before they are split.

        Raises:
            UnsupportedError: on every rank, if batches are split and the loss is no weighted mean on any.
        """
        self._runs = True
        waits = self._accumulate.on_oom == "split"
        if self._is_known or waits or is_compiled(self._model) or not window.begun_everywhere():
            return
        self._is_known = True
        found = self._found(window, loss_of, weigh)
        if found.is_additive is not False:
            return
        if self._accumulate.source == "split":
            raise UnsupportedError(f'source="split" cuts a batch into micro-batches. {found.message}')
        if self._adapter.collective.rank == 0:
            warn(found.message, _STACK)

    def on_backward(
        self, losses: Iterable[Tensor], window: Window[Any], batch: Any, weights: Mapping[str, float]
    ) -> None:
        """Look at the graph of a micro-batch's loss, and say what is not checked."""
        if self._is_known or not window.begun_everywhere():
            return
        self._look.add(losses, batch, weights.values(), len(window))
        is_cut = self._accumulate.source == "split" and len(window) > 1 and not self._runs
        if is_cut and self._adapter.collective.rank == 0 and not self._look.has_told:
            warn(
                'source="split" cuts each batch into micro-batches, and their gradients add up to that of the batch '
                "only if the loss is a weighted mean (or sum) of per-sample terms. That was not checked, since "
                "backward() is given the loss alone: pass attach(..., check=loss_of) with the function that gives a "
                "batch's loss, or write pipe.run(window, loss_of), which checks by itself.",
                _STACK,
            )
        self._is_known = self._look.is_done or is_cut

    def on_encode(self, window: Window[Any], encode: Callable[[Any], Any]) -> None:
        """Check, in the first window, that a sample's representation depends on no other sample. Collective.

        Raises:
            UnsupportedError: on every rank, if it does on any.
        """
        is_known, self._encodes_alone = self._encodes_alone, True
        if not is_known and not is_compiled(self._model) and window.begun_everywhere():
            check_encodes_alone(window, encode, self._model, self._adapter.collective)

    def on_split(self, window: Window[Any], loss_of: LossOf) -> Callable[[int, Weigh], None]:
        """Return what looks at the loss before the batches of `window` are cut into a number of pieces, given how these
        are weighed. Collective: every rank must call that.
        """

        def check(pieces: int, weigh: Weigh) -> None:
            check_additive(list(window.batches), pieces, self._forward(loss_of, weigh), self._adapter.collective)

        return check

    def _found(self, window: Window[Any], loss_of: LossOf, weigh: Weigh) -> LossCheck:
        return look_at_loss(list(window.batches), self._forward(loss_of, weigh), self._adapter.collective)

    def _forward(self, loss_of: LossOf, weigh: Weigh) -> Forward:
        names, is_mean = self._accumulate.losses, self._accumulate.loss_reduction == "mean"
        return Forward(lambda batch: checked_losses(loss_of(batch), names), weigh, self._model, is_mean)
