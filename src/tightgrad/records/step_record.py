"""What one step did, as plain numbers."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Records what happened in one window.

    Attributes:
        step: number of steps applied before this one.
        skipped: the step was not applied, and nothing has changed.
        skip_reason: "nonfinite", "spike" for a norm above the guard's bound, "zero_weight" for a window without
            anything to learn from, or "no_residual" for a `flush` without anything to deliver; None if applied.
        grad_norm: 2-norm of the delivered gradient before clipping; None for an empty plan, without
            `attach(..., measure=True)`.
        clip_coef: norm after clipping over norm before; None without clipping.
        wire_bytes: bytes that left this rank during the step; None for an empty plan, whose wrapper sends on its own.
        residual_norm: 2-norm of this rank's residuals; None without feedback.
        weight: N, with and without accumulation the sum of what the window's micro-batches count on all ranks, without
            those that were left out: the gradient is the sum of count times gradient of each mean loss, over N. A
            micro-batch counts what `attach(weight=...)` returns; without `weight` its samples if the plan accumulates,
            else 1, as in plain DDP, and always 1 under an empty plan. 0 for a `flush`.
        micro_batches: micro-batches on this rank; 0 for a `flush`.
        loss_scale: loss scale of this window; None without loss scaling.
        retries: how often the window was run again with smaller micro-batches.
        stage_seconds: seconds of each stage on the host's clock.
        clip_rate: share of the last 100 applied steps that were clipped; None without clipping.
        relative_error: what compression left out, over what was to be sent, 2-norms over all ranks, before any
            fallback; None without one.
        fell_back: gradients were sent again, uncompressed, because the relative error was above its bound.
        loss: this rank's mean loss over the weight of its micro-batches; None without weight, and for an empty
            plan without `attach(..., measure=True)`.
        memory_bytes: bytes of the tensors on this rank's GPU, or of the process on the CPU, after the step; None if not
            known.
        compression_cosine: cosine of the angle between what this rank was to send and what it sent; measured every
            tenth
            step, None on the others and without compression.
        warm_start_overlap: share of the directions of PowerSGD's factors that the step kept, in [0, 1]; measured every
            tenth step, None on the others, before there are any, and for other methods.
        noise_scale: the gradient noise scale, averaged over steps, in the unit of `weight`; None if the plan does not
            measure it, or it is not known yet.
        parameter_norm: 2-norm of the model's parameters after the step, the same on every rank unless they have
            drifted apart; measured every tenth step, None on the others and for an empty plan.
        group_norms: where groups are clipped by themselves, each group's 2-norm before clipping: by place of the
            optimizer ("0", "1") for `clip.PerOptimizer`, by pattern for `clip.ByName`.
        group_clip_coefs: each group's norm after clipping over its norm before.
    """

    step: int
    skipped: bool
    skip_reason: str | None
    grad_norm: float | None
    clip_coef: float | None
    wire_bytes: int | None
    residual_norm: float | None
    weight: float
    micro_batches: int
    loss_scale: float | None = None
    retries: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    clip_rate: float | None = None
    relative_error: float | None = None
    fell_back: bool = False
    loss: float | None = None
    memory_bytes: int | None = None
    compression_cosine: float | None = None
    warm_start_overlap: float | None = None
    parameter_norm: float | None = None
    noise_scale: float | None = None
    group_norms: dict[str, float] = field(default_factory=dict)
    group_clip_coefs: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return asdict(self)
