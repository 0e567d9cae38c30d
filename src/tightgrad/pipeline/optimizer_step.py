"""The end of a step: final gradients go to the optimizer, and the step is remembered."""

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tightgrad.accumulate.buffer import GradientBuffer
from tightgrad.checkpoint.state import PipelineState
from tightgrad.clip.fold import folded
from tightgrad.core.clock import StageClock
from tightgrad.core.types import State
from tightgrad.pipeline.collaborators import without_closure
from tightgrad.pipeline.ownership import Ownership
from tightgrad.pipeline.path import Update
from tightgrad.plan.loss_scaling import LossScaling
from tightgrad.sync.compressed import merge


class OptimizerStep:
    """Steps the optimizer, and after it the scheduler; no gradient is changed by anyone in between.

    Args:
        optimizer: of the pipeline.
        scheduler: steps after it; None if there is none.
        buffer: puts gradients where the optimizer looks for them.
        clock: takes the seconds.
        ownership: lets the pipeline, and nobody else, step.
        scaling: counts good steps; None without a loss scale.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        buffer: GradientBuffer,
        clock: StageClock,
        ownership: Ownership,
        scaling: LossScaling | None,
    ) -> None:
        self._optimizer = optimizer
        self._step_scheduler: Callable[[], Any] = scheduler.step if scheduler is not None else lambda: None
        self._buffer = buffer
        self._clock = clock
        self._ownership = ownership
        self._scaling = scaling

    def take(self, update: Update, state: PipelineState, learned: State) -> None:
        """Step with the update's gradients; remember its slots, and `learned` on top of them."""
        with self._clock("optimizer"):
            self._buffer.deliver(update.grads)
            with folded(self._optimizer, update.fold):
                self._step()
        slots = merge(update.slots, learned)
        if self._scaling is not None:
            slots = merge(slots, self._scaling.after_applied(state.slots))
        state.applied(slots)
        self._step_scheduler()

    def take_as_they_are(self, state: PipelineState) -> None:
        """Step with the gradients that backward has left."""
        with self._clock("optimizer"):
            self._step()
        state.applied()
        self._step_scheduler()

    def _step(self) -> None:
        with self._ownership.stepping(), without_closure(self._optimizer):
            self._optimizer.step()
