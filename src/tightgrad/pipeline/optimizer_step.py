"""The optimizers, and the schedulers that follow them: nobody changes a gradient between the clip and their steps."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tightgrad.clip.fold import folded
from tightgrad.core.errors import ConfigError
from tightgrad.core.notices import warn
from tightgrad.pipeline.premises.collaborators import (
    has_two_steps,
    needs_closure,
    needs_metric,
    takes_closure,
    without_closure,
)
from tightgrad.pipeline.premises.optimizer_settings import in_window
from tightgrad.pipeline.premises.ownership import Ownership


class OptimizerStep:
    """Steps the optimizers as their owner, one after the other, and after them the schedulers.

    Args:
        optimizers: of the pipeline.
        schedulers: of these optimizers.
        ownership: lets the pipeline, and nobody else, step.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], schedulers: Sequence[LRScheduler], ownership: Ownership
    ) -> None:
        self.optimizers, self.schedulers, self._ownership = optimizers, schedulers, ownership
        self._epochs: list[int] | None = None

    def step(self, folds: Sequence[Tensor | None] = ()) -> None:
        """Step with the gradients that are there.

        Args:
            folds: for each optimizer, a factor that it still has to multiply them by, or None if they are final; empty
                if all are.
        """
        for optimizer, fold in zip_longest(self.optimizers, folds):
            with folded(optimizer, fold), self._ownership.stepping(), without_closure(optimizer):
                optimizer.step()

    def settings_in_window(self) -> tuple[float, int]:
        """Return what ranks compare in each window: the first learning rate, and a hash of all settings."""
        return in_window(self.optimizers)

    def takes_closure(self, *, only_declared: bool) -> bool:
        """Tell whether there is one optimizer, to whose step a closure may make a difference.

        Args:
            only_declared: whether only one that says that it needs one counts.
        """
        if len(self.optimizers) > 1:
            return False
        return needs_closure(self.optimizers[0]) or (not only_declared and takes_closure(self.optimizers[0]))

    def step_with(self, closure: Callable[[], Tensor]) -> None:
        """Step the only optimizer with a closure, or in the two halves that it has for it. Gradients are there, and
        are final.
        """
        optimizer: Any = self.optimizers[0]
        with self._ownership.stepping():
            try:
                if not has_two_steps(optimizer) or takes_closure(optimizer):
                    optimizer.step(closure)
                    return
            except NotImplementedError:  # some SAMs have a step(closure=None) that only says so
                if not has_two_steps(optimizer):
                    raise
            optimizer.first_step()
            closure()
            optimizer.second_step()

    def step_schedulers(self, loss: Callable[[], Tensor] | None = None) -> Exception | None:
        """Step the schedulers, after a step that was applied. Collective if one needs a metric.

        Args:
            loss: gives the window's over all ranks, for those that need a metric; None leaves these alone.

        Returns:
            The error to raise once the step is recorded, if a scheduler's own step has raised, as OneCycleLR's does
            after its last one; the schedulers after it have not been stepped.
        """
        self._look_for_steps_of_others()
        for scheduler in self.schedulers:
            by_metric: Any = scheduler
            metric = [float(loss())] if loss is not None and needs_metric(scheduler) else []
            if needs_metric(scheduler) and not metric:
                continue
            try:
                by_metric.step(*metric)
            except Exception as error:
                told = _schedule_error(scheduler, error)
                told.__cause__ = error
                return told
        if self._epochs is None or self._epochs:
            self._epochs = self._now()
        return None

    def _now(self) -> list[int]:
        return [getattr(scheduler, "last_epoch", 0) for scheduler in self.schedulers]

    def _look_for_steps_of_others(self) -> None:
        """Warn, once, if each scheduler has gone one step on since the pipeline stepped it; a loaded one jumps."""
        now = self._now()
        if not self._epochs or now != [epoch + 1 for epoch in self._epochs]:
            return
        self._epochs = []  # once
        names = " and ".join(type(scheduler).__name__ for scheduler in self.schedulers)
        warn(
            f"the loop has called step() on {names}, which attach(..., scheduler=) lets the pipeline step after each "
            "applied step: the schedule runs twice as fast. Drop the loop's scheduler.step(), or leave scheduler out "
            "of attach().",
            stacklevel=7,
        )


def _schedule_error(scheduler: object, error: Exception) -> ConfigError:
    total = getattr(scheduler, "total_steps", None)
    steps = "" if total is None else f" (it has total_steps={total})"
    return ConfigError(
        f"{type(scheduler).__name__}.step() raised {type(error).__name__}: {error}. This came after the step of the "
        "optimizer, which has been applied: the weights have moved, pipe.state.step counts it, and the writers of "
        f"attach(..., records=) have its record. If the schedule{steps} has come to its end, give it as many steps as "
        "there are windows, over all epochs, or end training with its last one."
    )
