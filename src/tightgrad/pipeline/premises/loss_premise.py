"""What the pipeline finds out about the loss before it relies on it.

Only what is proved is said: the loss of a batch is evaluated, and compared with those of its halves. Batches of the
loader are compared only if the user asks for it, since a batch may be one sequence or one graph, which has no halves.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from tightgrad.accumulate import Accumulate, Window
from tightgrad.accumulate.additive import Forward, check_additive
from tightgrad.accumulate.loss_graph.cross_entropy import compares_samples
from tightgrad.accumulate.loss_graph.division import DivisionCheck, RanksCheck
from tightgrad.accumulate.losses import checked_losses
from tightgrad.accumulate.trial_forward import is_compiled, own_statistics
from tightgrad.adapters.plain import Adapter
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.notices import warn
from tightgrad.pipeline.cached import check_encodes_alone
from tightgrad.pipeline.premises.check_loss import LossCheck, look_at_loss
from tightgrad.pipeline.premises.scaler_guard import check_unscaled

LOOKS = 4  # micro-batches whose losses are looked at
LossOf = Callable[[Any], Tensor | Mapping[str, Tensor]]
Weigh = Callable[[Any], Mapping[str, float]]


class LossPremise:
    """Checks that the loss is a weighted mean of per-sample terms, each time once.

    Args:
        model: with its wrapper.
        adapter: of the model.
        accumulate: whose windows are run.
        check: gives a batch's loss, for the first window's check; None checks only what `pipe.run` splits.

    Attributes:
        model: with its wrapper.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, accumulate: Accumulate, check: LossOf | None) -> None:
        self.model, self._adapter, self._accumulate = model, adapter, accumulate
        self._check = check
        # Compiled models are left alone: other sizes of batches would be compiled for. A window that may run out of
        # memory is looked at before it is cut again.
        is_cut = accumulate.source == "split" and accumulate.on_oom == "raise"
        self._checks_run = check is None and is_cut and accumulate.several_backwards and not is_compiled(model)
        has_parts = accumulate.several_backwards or adapter.collective.world_size > 1
        self._looks_left = LOOKS if has_parts else 0
        self._num_in_batch = 0
        self._division, self._ranks = DivisionCheck(), RanksCheck(adapter.collective.world_size)
        self._looks_for_division = True
        self._looks_for_scaler = True
        self._checks_encode = has_parts and not is_compiled(model)

    def look_for_scale(self, losses: Mapping[str, Tensor]) -> None:
        """Look at the first losses.

        Raises:
            UsageError: one comes from a GradScaler's `scale`, and so is not the pipeline's to scale.
        """
        if self._looks_for_scaler:
            check_unscaled(losses.values())
            self._looks_for_scaler = False

    def look(self, losses: Mapping[str, Tensor], micro_batches: int, stacklevel: int) -> None:
        """Warn, once each, if the first losses of a loop are cross entropies of each sample's scores with every other,
        or are divided by the number of micro-batches in their window.

        Those of `pipe.run_cached` are not a loop's: they see all samples.
        """
        self._look_for_division(losses.values(), micro_batches, stacklevel + 1)
        if not self._looks_left:
            return
        self._looks_left -= 1
        self._num_in_batch += any(map(compares_samples, losses.values()))
        if self._num_in_batch < 2:  # labels may be 0, 1, 2, ... once by chance
            return
        self._looks_left = 0
        if self._adapter.collective.rank == 0:
            warn(
                "the loss compares each sample with the others of its micro-batch (cross entropy over a product of "
                "representations, with targets 0, 1, 2, ...), so accumulated over micro-batches or ranks it has fewer "
                "negatives than one big batch, and another gradient. pipe.run_cached(window, encode, loss) gives that "
                "of the big batch. If every micro-batch is meant to stand alone, as an episode does, ignore this.",
                stacklevel + 1,
            )

    def _look_for_division(self, losses: Collection[Tensor], count: int, stacklevel: int) -> None:
        is_sure = self._looks_for_division and self._division.is_sure(losses, count)
        if is_sure and self._adapter.collective.rank == 0:
            warn(
                f"the loss is divided by {count}, the number of micro-batches in a window, as in a loop without "
                "TightGrad. The pipeline divides by the weight of the whole window itself, so the gradient would be "
                f"{count} times too small: give pipe.backward (or pipe.run) the micro-batch's own loss, undivided. If "
                "the factor is part of the loss itself, ignore this TightGradWarning.",
                stacklevel + 1,
            )
        scaled = self._ranks.scaled(losses, count) if self._looks_for_division and not is_sure else None
        if scaled is not None and self._adapter.collective.rank == 0:
            how, times = scaled
            warn(
                f"the loss is {how}, as in a loop that sums or averages over ranks by hand. The pipeline divides by "
                f"the weight of the window on all ranks itself, so the gradient would be {times:.3g} times what it "
                "should be: give pipe.backward (or pipe.run) the micro-batch's own loss on this rank. If the factor is "
                "part of the loss itself, ignore this TightGradWarning.",
                stacklevel + 1,
            )

    def on_window(self, window: Window[Any], weigh: Weigh) -> None:
        """Check the first window's loss with the function that `attach` was given, if it was given one. Collective.

        Args:
            window: not begun.
            weigh: what a batch counts.

        Raises:
            UnsupportedError: on every rank, if the loss is no weighted mean on any.
        """
        check, self._check = self._check, None
        if check is None or not window.begun_everywhere():
            return
        found = self._found(window, check, weigh)
        if found.is_additive is False:
            raise UnsupportedError(f"attach(..., check=) has looked at the loss. {found.message}")
        if found.is_additive is None and self._adapter.collective.rank == 0:
            warn(f"attach(..., check=) has looked at the loss. {found.message}", stacklevel=3)

    def on_run(self, window: Window[Any], loss_of: LossOf, weigh: Weigh) -> None:
        """Check the loss of the first window whose batch was cut into micro-batches. Collective.

        BatchNorm layers were told of at attach.

        Raises:
            UnsupportedError: on every rank, if the loss is no weighted mean on any.
        """
        self._looks_for_division &= self._accumulate.source == "loader"  # a piece of a batch is no loop's micro-batch
        checks, self._checks_run = self._checks_run, False
        if not checks or own_statistics(self.model) or not window.begun_everywhere():
            return
        found = self._found(window, loss_of, weigh)
        if found.is_additive is False:
            raise UnsupportedError(
                'source="split" cuts a batch into micro-batches; to have them all the same, cut it in the loader. '
                f"{found.message}"
            )

    def on_encode(self, window: Window[Any], encode: Callable[[Any], Any]) -> None:
        """Check, in the first window, that a sample's representation depends on no other sample. Collective.

        Raises:
            UnsupportedError: on every rank, if it does on any.
        """
        checks, self._checks_encode = self._checks_encode, False
        if checks and window.begun_everywhere():
            check_encodes_alone(window, encode, self.model, self._adapter.collective)

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
        return Forward(lambda batch: checked_losses(loss_of(batch), names), weigh, self.model, is_mean)
