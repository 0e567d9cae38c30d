"""The step of an empty plan."""

import torch
from torch import Tensor

from tightgrad.accumulate.losses import check_has_gradient
from tightgrad.clip.norm import exact_norm
from tightgrad.core.types import Clipped
from tightgrad.pipeline.closure import Again
from tightgrad.pipeline.delivery import Outcome
from tightgrad.pipeline.step import Step
from tightgrad.pipeline.window_loss import Weights


class PlainStep(Step):
    """Runs the backward and the optimizer of an empty plan, which is bitwise plain PyTorch.

    Loss and norm are measured only where `attach` was told to: both wait for the device.
    """

    def begin(self) -> None:
        """Leave all as it is: under an empty plan the gradients are not the pipeline's own."""

    def backward(self, losses: dict[str, Tensor], weights: Weights) -> None:
        """Run the loss's backward as it is."""
        name, loss = losses.popitem()
        if self._parts.measures:
            self.loss.meter.add({name: loss}, weights, weights)
        self.add_gradient(loss, weights)

    def add_gradient(self, loss: Tensor | None, weights: Weights) -> None:
        """Run a loss's backward; None runs nothing."""
        if loss is not None:
            with self._parts.clock("backward"):
                check_has_gradient(loss)
                loss.backward()

    def complete(self) -> None:
        """Make sure that the batch has had its backward; every rank's batch counts 1."""
        self.window.check_complete()
        self.total_weight = float(self._parts.adapter.collective.world_size)

    def tell(self, why: str) -> None:
        """Tell nobody: other ranks wait in a backward, or for nothing."""

    def apply(self, again: Again | None = None) -> Outcome:
        """Step the optimizer with the gradients that are there, without a closure."""
        clipped = self._measured() if self._parts.measures else None
        with self._parts.clock("optimizer"):
            self._parts.optimizer.step()
        self._parts.state.applied()
        return Outcome(clipped, raised=self._parts.optimizer.step_schedulers())

    @torch.no_grad()
    def _measured(self) -> Clipped | None:
        """The norm of the gradients as they are; None where an optimizer has taken them in backward. Collective where
        they are sharded.
        """
        grads = [p.grad for p in self._parts.adapter.parameters.values() if p.grad is not None]
        if not grads:
            return None
        with self._parts.clock("clip"):
            norm = exact_norm(grads)
        return Clipped(norm, torch.ones_like(norm))
