"""A window that someone else's loop walks: batches go in at once, micro-batches and the step come one by one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tightgrad.accumulate import Accumulate, Window
from tightgrad.core.errors import ConfigError, UsageError
from tightgrad.core.protocols import Clipper
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.plan.plan import Plan
from tightgrad.records.step_record import StepRecord


class ForeignLoop:
    """Drives a pipeline from a framework's callbacks.

    Attributes:
        record: of the last step; None before it.
    """

    def __init__(self, pipe: GradientPipeline) -> None:
        self.pipe = pipe
        self.record: StepRecord | None = None
        self._windows: Iterator[Window[Any]] = iter(())
        self._window: Window[Any] | None = None
        self._next = 0
        self._norms: list[Tensor] = []

    def open(self, batches: Sequence[Any]) -> None:
        """Begin a window of exactly these batches. Collective: every rank must call it.

        Raises:
            UsageError: the window before has not come to its step.
        """
        self._windows = self.pipe.windows(batches)  # kept, since letting go of it waits for the other ranks
        window = next(self._windows, None)
        if window is None or len(window) != len(batches):
            raise UsageError(
                f"a window of {len(batches)} batches was cut into {0 if window is None else len(window)}; the number "
                "of micro-batches of the plan must be the loop's own."
            )
        self._window, self._next = window, 0

    @property
    def is_open(self) -> bool:
        """Whether a window has begun whose step has not come."""
        return self._window is not None

    @property
    def is_last(self) -> bool:
        """Whether the current micro-batch is the window's last, so that the step comes after it."""
        return self._window is not None and self._next == len(self._window)

    @property
    def num_micro_batches(self) -> int:
        """Of the open window, on this rank."""
        return len(self._window) if self._window is not None else 0

    @property
    def position(self) -> int:
        """Micro-batches of the open window that have begun."""
        return self._next if self._window is not None else 0

    @property
    def num_backwards(self) -> int:
        """Micro-batches of the open window whose backward has run."""
        return self._window.backwards if self._window is not None else 0

    @property
    def loss_share(self) -> float:
        """What the current micro-batch's loss counts for in the mean over the window's losses on all ranks, times
        the number of ranks: frameworks average over ranks what they log.
        """
        assert self._window is not None
        weight = next(iter(self._window.weights[self._next - 1].values()))
        ranks, accumulate = self.pipe.adapter.collective.world_size, self.pipe.plan.accumulate
        share = ranks * (accumulate or Accumulate()).loss_factor(weight, 1.0)
        return share / self._window.total_weight if self._window.total_weight else 0.0

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Held around the forward and backward of the next micro-batch.

        Raises:
            UsageError: the window has no further one.
        """
        if self._window is None or self._next >= len(self._window):
            raise UsageError("there is no further micro-batch in this window; the loop runs more than it announced.")
        self._next += 1
        with self._window.micro_batch(self._next - 1):
            yield

    def step(self) -> StepRecord:
        """Finish the window, and tell the norm to those who asked for it. Collective: every rank must call it."""
        self._window = None
        try:
            self.record = self.pipe.step()
        finally:
            norms, self._norms = self._norms, []
        if self.record.grad_norm is not None:
            for norm in norms:
                norm.fill_(self.record.grad_norm)
        return self.record

    def abandon(self) -> None:
        """Drop the open window, if there is one."""
        if self._window is not None:
            self.pipe.abandon()
            self._window, self._norms = None, []

    def close(self) -> None:
        """Drop the open window, and give model and optimizer back to other loops."""
        self.abandon()
        self.pipe.close()

    def later_norm(self) -> Tensor:
        """A float32 scalar that is nan until the step, which fills in the norm before clipping: gradients are summed
        over ranks and clipped there.
        """
        norm = torch.tensor(torch.nan)
        self._norms.append(norm)
        return norm


def with_micro_batches(plan: Plan, micro_batches: int, setting: str) -> Plan:
    """The plan with the framework's own number of micro-batches.

    Raises:
        ConfigError: the plan has another.
    """
    if plan.accumulate is None:
        return replace(plan, accumulate=Accumulate(micro_batches=micro_batches))
    accumulate = plan.accumulate
    is_whole = accumulate.source == "loader" and accumulate.partial == "flush" and accumulate.fetch == "window"
    if accumulate.micro_batches != micro_batches or not is_whole:
        raise ConfigError(
            f"the plan has {accumulate}, but {setting} is {micro_batches} and that loop cuts the windows; "
            'pass the same number, with source="loader", partial="flush" and fetch="window", or leave accumulate out '
            "of the plan."
        )
    return plan


def with_clip(plan: Plan, wanted: Clipper | None, setting: str) -> Plan:
    """The plan with the framework's own clipping.

    Args:
        plan: what to run.
        wanted: what the framework is set to; None where it does not clip.
        setting: where the framework has it from.

    Raises:
        ConfigError: the plan has another.
    """
    if wanted is None or (plan.clip is not None and clips_alike(plan.clip, wanted)):
        return plan
    if plan.clip is None:
        return replace(plan, clip=wanted)
    raise ConfigError(
        f"{setting} clips with {wanted}, but the plan with {plan.clip}: gradients are clipped once. Give "
        "both the same, or leave it out of one of them."
    )


def clips_alike(planned: Clipper | None, wanted: Clipper) -> bool:
    """Whether the plan clips as a framework's norm or value clipping would; how it does so may differ."""
    return type(planned) is type(wanted) and all(
        getattr(planned, name) == getattr(wanted, name)
        for name in ("max_norm", "norm_type", "max_value")
        if hasattr(wanted, name)
    )


def missing_backward(loop: ForeignLoop) -> str:
    """What to say where a batch of the window has had no backward through the pipeline."""
    return (
        f"accelerator.backward(loss) was called for {loop.num_backwards} of the {loop.position} batches of this window "
        "so far, but the weights of all count. Call it for each batch that the loader gives, in place of "
        "loss.backward(); leave batches out in the DataLoader, or give them the weight 0."
    )
