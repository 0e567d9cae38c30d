"""The step of an empty plan."""

from torch import Tensor

from tightgrad.accumulate.losses import check_has_gradient
from tightgrad.pipeline.closure import Again
from tightgrad.pipeline.delivery import Outcome
from tightgrad.pipeline.step import Step
from tightgrad.pipeline.window_loss import Weights


class PlainStep(Step):
    """Runs the backward and the optimizer of an empty plan, which is bitwise plain PyTorch."""

    def begin(self) -> None:
        """Leave all as it is: under an empty plan the gradients are not the pipeline's own."""

    def backward(self, losses: dict[str, Tensor], weights: Weights) -> None:
        """Run the loss's backward as it is."""
        _, loss = losses.popitem()
        self.add_gradient(loss, weights)

    def add_gradient(self, loss: Tensor | None, weights: Weights) -> None:
        """Run a loss's backward; None runs nothing."""
        if loss is not None:
            with self._parts.clock("backward"):
                check_has_gradient(loss)
                loss.backward()

    def complete(self) -> None:
        """Make sure that the batch has had its backward."""
        self.window.check_complete()

    def apply(self, again: Again | None = None) -> Outcome:
        """Step the optimizer with the gradients that are there, without a closure."""
        with self._parts.clock("optimizer"):
            self._parts.optimizer.step()
        self._parts.state.applied()
        self._parts.optimizer.step_schedulers()
        return Outcome()
