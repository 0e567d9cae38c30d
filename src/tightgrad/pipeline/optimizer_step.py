"""The optimizer, and the scheduler that follows it: nobody changes a gradient between the clip and its step."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tightgrad.clip.fold import folded
from tightgrad.pipeline.collaborators import without_closure
from tightgrad.pipeline.ownership import Ownership


class OptimizerStep:
    """Steps the optimizer as its owner, and after it the scheduler.

    Args:
        optimizer: of the pipeline.
        scheduler: steps after it; None if there is none.
        ownership: lets the pipeline, and nobody else, step.
    """

    def __init__(self, optimizer: Optimizer, scheduler: LRScheduler | None, ownership: Ownership) -> None:
        self._optimizer = optimizer
        self._ownership = ownership
        self.step_scheduler: Callable[[], Any] = scheduler.step if scheduler is not None else lambda: None

    def step(self, fold: Tensor | None = None) -> None:
        """Step with the gradients that are there.

        Args:
            fold: a factor that the optimizer still has to multiply them by; None if they are final.
        """
        with folded(self._optimizer, fold), self._ownership.stepping(), without_closure(self._optimizer):
            self._optimizer.step()
