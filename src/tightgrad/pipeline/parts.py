"""What all steps of a pipeline share."""

from collections.abc import Callable
from dataclasses import dataclass

from tightgrad.accumulate.alike import Alike, packed
from tightgrad.accumulate.buffer import GradientBuffer
from tightgrad.accumulate.denominator import DenominatorCheck
from tightgrad.adapters.plain import Adapter
from tightgrad.checkpoint.state import PipelineState
from tightgrad.core.clock import StageClock
from tightgrad.core.types import Grads
from tightgrad.pipeline.delivery import Delivery
from tightgrad.pipeline.optimizer_step import OptimizerStep
from tightgrad.pipeline.premises.ownership import Ownership
from tightgrad.pipeline.premises.premises import Premises
from tightgrad.plan.loss_scaling import LossScaling
from tightgrad.plan.plan import Resolved
from tightgrad.sync.protocol import GradientSync


@dataclass(slots=True)
class Parts:
    """Holds what lives as long as the pipeline; what belongs to one window is in its `Step`.

    Args:
        adapter: of the model.
        sync: sums gradients over ranks.
        plan: that runs.
        state: what the methods remember.
        buffer: where a window's gradients add up.
        delivery: lets the guard and the clipper decide.
        optimizer: takes the gradients.
        ownership: whose the gradients are.
        premises: looks at model and optimizer.
        clock: takes the seconds of the stages.
        scaling: of the loss; None without a loss scale.
        check: compares weights with what losses were averaged over.
        measures: whether an empty plan's loss and gradient norm are measured, the same on every rank.
        before_clip: called with the gradients summed over ranks, which it may change, before their norm is taken.
    """

    adapter: Adapter
    sync: GradientSync
    plan: Resolved
    state: PipelineState
    buffer: GradientBuffer
    delivery: Delivery
    optimizer: OptimizerStep
    ownership: Ownership
    premises: Premises
    clock: StageClock
    scaling: LossScaling | None
    check: DenominatorCheck
    measures: bool = False
    before_clip: Callable[[Grads], None] | None = None

    def alike(self) -> Alike:
        """Return what ranks compare in each window."""
        rate, settings = self.optimizer.settings_in_window()
        watch = self.premises.model
        number = packed(
            written=self.premises.weights.is_written,
            steps=self.state.step,
            settings=settings,
            frozen=watch.frozen_now,
            modes=watch.take_modes(),
            modules=self.adapter.take_called_modules(),
        )
        return Alike(rate, number, watch.said)

    def restart(self) -> None:
        """Wait for what is under way on this rank, and clear all gradients."""
        self.ownership.forget_grads()
        self.premises.weights.forget()
        self.sync.cancel()
        self.adapter.restore_accumulated({})
        self.buffer.clear()
