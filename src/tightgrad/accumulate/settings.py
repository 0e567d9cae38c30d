"""Accumulation: G = (1 / N) sum over ranks and micro-batches of grad L_rk, with N the weight of the whole window.

    Ott et al. 2018, Scaling Neural Machine Translation, arXiv:1806.00187 (delayed updates).

Departs from the common loop, which divides each loss by the number of micro-batches: that is right only if all
micro-batches weigh the same and the last window is full.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_integer, check_number
from tightgrad.core.errors import ConfigError, IncompatiblePlanError

LOSS_REDUCTIONS = ("mean", "sum")
PARTIAL_POLICIES = ("flush", "carry", "drop")
SOURCES = ("loader", "split")
FETCHES = ("auto", "window", "batch")
SYNCS = ("auto", "last", "every")
OOM_POLICIES = ("raise", "split")

Schedule = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Accumulate:
    """Takes one optimizer step from several micro-batches.

    Args:
        micro_batches: K on each rank, at least 1: batches of the loader that make one window (or, with
            source="split", pieces that one batch is cut into). A schedule is a tuple of (first step, K) pairs that
            starts at step 0; K changes only between windows. None with `window_weight`.
        window_weight: instead of K, the weight (such as the number of tokens) that all ranks together collect for a
            step, at least: each rank takes batches until it has its share. Also as a schedule.
        loss_reduction: "mean" if the loss given to `backward` is an average over its micro-batch's weight, "sum" if
            it is a sum.
        losses: names of several losses with a denominator each; `weight` and `backward` then take a mapping with
            these keys. The first one's weight counts for `window_weight` and the record.
        partial: what happens to the loader's last, incomplete window: "flush" applies it (exact all the same),
            "carry" keeps its batches for the next call of `windows`, "drop" leaves them out.
        source: "loader" takes K batches, "split" cuts each batch into K pieces along its samples: tensors by their
            first dimension, lists by their entries. A batch that does not show where its samples are is refused.
        fetch: "window" fetches and weighs a window's batches before its first backward, so that losses are scaled by N
            from the start. Batches that are drawn from a global generator are then drawn before the window's dropout
            masks, other than in a loop by hand. "batch" fetches each when its turn comes, as a loop by hand does: no
            batches wait in memory, a loader may reuse its buffers, and its workers go on while micro-batches run.
            Losses are then scaled by the N that the ranks' first batches let expect, and gradients are multiplied
            once, before they are reduced, where N turns out to be another: the same gradient to rounding, and to the
            bit where all batches weigh the same and the window is full. Needs `micro_batches`, one loss,
            source="loader", partial="flush", on_oom="raise" and a plan without `noise_scale`. Where gradients are
            reduced in backward, the last window of a loader then has K micro-batches as well, the missing ones
            repeated with weight 0. "auto" is "batch" on one process where the plan and the wrapper allow it (not FSDP2,
            nor overlap="backward", which have to know the last micro-batch before its forward), and "window" elsewhere.
        sync: when a wrapper that reduces by itself does so: "last" once a window, "every" after each micro-batch
            (more traffic, and under FSDP2 no unsharded gradients in memory), "auto" by the bytes of these.
        on_oom: when a rank runs out of memory in `GradientPipeline.run`: "raise", or "split" to run the window again
            with smaller micro-batches on all ranks; gradients are then summed after the last backward. Before the first
            split, the loss of a piece is compared with that of its halves, and a difference is an error.
        allow_skip: whether `pipe.skip()` may take micro-batches out of their window on several ranks, which then tell
            each other once a step how much weight was left out. On one rank it always may.

    The gradient is that of one big batch for a loss that is a weighted mean (or a sum) of terms which each depend on
    one sample. For contrastive losses (InfoNCE) it is with `GradientPipeline.run_cached`; for BatchNorm in training
    mode, balance terms of a mixture of experts and advantages normalised within a batch it is not. `tg.check_loss`
    tells whether a loss is such a mean.

    Raises:
        ConfigError: a value is out of its bounds, or not exactly one of `micro_batches` and `window_weight` is given.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(micro_batches=4)))
        >>> for window in pipe.windows([torch.ones(8, 4)] * 8):
        ...     for batch in window:
        ...         pipe.backward(model(batch).square().mean())
        ...     record = pipe.step()
        >>> record.step, record.micro_batches, record.weight
        (1, 4, 32.0)
    """

    micro_batches: int | Schedule | None = 1
    window_weight: float | Schedule | None = None
    loss_reduction: str = "mean"
    losses: tuple[str, ...] = ("loss",)
    partial: str = "flush"
    source: str = "loader"
    fetch: str = "auto"
    sync: str = "auto"
    on_oom: str = "raise"
    allow_skip: bool = False

    card: ClassVar[MethodCard] = MethodCard(
        id="accumulate",
        kind="accumulate",
        summary="the gradient of one big batch from micro-batches of any weight",
        scope="model",
        unbiased=True,
        linear=True,
        reference="Ott et al. 2018, arXiv:1806.00187",
        use_when="the batch that training wants does not fit into memory, or the link is slow",
        avoid_when="the batch fits and the link is fast: steps only become rarer; or the loss compares samples",
    )

    def __post_init__(self) -> None:
        check_choice("loss_reduction", self.loss_reduction, LOSS_REDUCTIONS)
        check_choice("partial", self.partial, PARTIAL_POLICIES)
        check_choice("source", self.source, SOURCES)
        check_choice("fetch", self.fetch, FETCHES)
        check_choice("sync", self.sync, SYNCS)
        check_choice("on_oom", self.on_oom, OOM_POLICIES)
        check_choice("allow_skip", self.allow_skip, (False, True))
        if (self.micro_batches is None) == (self.window_weight is None):
            raise ConfigError(
                f"micro_batches={self.micro_batches!r} and window_weight={self.window_weight!r}: give exactly one; "
                "the other is None."
            )
        losses: object = self.losses
        are_names = isinstance(losses, tuple) and all(isinstance(name, str) and name for name in losses)
        if not are_names or not self.losses or len(set(self.losses)) < len(self.losses):
            raise ConfigError(f"losses={self.losses!r} must be a tuple of different names.")
        for step, value in _points(self.micro_batches):
            check_integer("the first step of a schedule", step, low=0)
            check_integer("micro_batches", value, low=1)
        for step, value in _points(self.window_weight):
            check_integer("the first step of a schedule", step, low=0)
            check_number("window_weight", value, above=0)
        self._check_sorted()
        if self.source == "split" and (self.window_weight is not None or self.partial != "flush"):
            raise IncompatiblePlanError(
                'source="split" makes every window from one batch, so it has micro_batches and no partial windows; '
                'leave window_weight and partial alone, or take source="loader".'
            )
        reason = self.why_whole_windows
        if self.fetch == "batch" and reason is not None:
            raise IncompatiblePlanError(f'fetch="batch" needs {reason}. Change it, or take fetch="window".')

    @property
    def why_whole_windows(self) -> str | None:
        """Return which setting needs a window's batches before its first backward, and why; None if none does."""
        known = (
            ("window_weight", self.window_weight, None, "a window's end has to be known by number"),
            ("losses", self.losses, self.losses[:1], "denominators of several losses would be off by several factors"),
            ("source", self.source, "loader", "the batch that is split is there anyway"),
            ("partial", self.partial, "flush", "a window is known to be partial only after its backwards"),
            ("on_oom", self.on_oom, "raise", "a window that is run again needs its batches"),
        )
        found = [f"{name}={needed!r}, not {value!r}: {why}" for name, value, needed, why in known if value != needed]
        return found[0] if found else None

    def _check_sorted(self) -> None:
        for schedule in (self.micro_batches, self.window_weight):
            steps = [step for step, _ in _points(schedule)]
            if steps and (steps[0] != 0 or steps != sorted(set(steps))):
                raise ConfigError(f"the schedule {schedule!r} must start at step 0 and go up: ((0, 1), (100, 2)).")

    @property
    def several_backwards(self) -> bool:
        """Tell whether a window may have more than one micro-batch."""
        if self.on_oom == "split" or self.window_weight is not None:
            return True
        return any(value > 1 for _, value in _points(self.micro_batches))

    def micro_batches_at(self, step: int) -> int | None:
        """Return K for this step; None if windows are filled by weight."""
        return None if self.micro_batches is None else int(_value_at(self.micro_batches, step))

    def window_weight_at(self, step: int) -> float | None:
        """Return the weight that all ranks collect for this step; None if windows have K micro-batches."""
        return None if self.window_weight is None else _value_at(self.window_weight, step)

    def num_windows(self, num_batches: int, step: int) -> int:
        """Return into how many windows so many batches of a loader are cut, if every step is applied.

        Args:
            num_batches: of the loader on this rank, and those carried over to it.
            step: of the first window.

        Raises:
            TypeError: windows are filled by weight, so that their number is not known before.
        """
        if self.micro_batches is None:
            raise TypeError(
                f"windows of window_weight={self.window_weight!r} have no length: how many batches one takes is known "
                "when they have been weighed. Take micro_batches=..., or count steps."
            )
        if self.source == "split":
            return num_batches
        points, windows, left = _points(self.micro_batches), 0, num_batches
        for (_, size), end in zip(points, [first for first, _ in points[1:]] + [math.inf], strict=True):
            full = int(min(max(0, end - step - windows), left // size))
            windows, left = windows + full, left - int(full * size)
            if step + windows < end:
                break
        return windows + (left > 0 and self.partial == "flush")

    def loss_factor(self, weight: float, total_weight: float) -> float:
        """Return what a loss of a micro-batch is multiplied by before its backward, so that gradients sum to G."""
        if weight == 0:
            return 0.0
        return (weight if self.loss_reduction == "mean" else 1.0) / total_weight


def _points(schedule: float | Schedule | None) -> Schedule:
    if schedule is None:
        return ()
    if not isinstance(schedule, tuple):
        return ((0, schedule),)
    if not schedule or any(not _is_pair(point) for point in schedule):
        raise ConfigError(f"the schedule {schedule!r} must be a tuple of (first step, value) pairs.")
    return schedule


def _is_pair(point: object) -> bool:
    return isinstance(point, tuple) and len(point) == 2


def _value_at(schedule: float | Schedule, step: int) -> float:
    return [value for first, value in _points(schedule) if first <= step][-1]
