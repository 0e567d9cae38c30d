"""The rows and figures of clip_geometry, temporal_order, loss_spikes and clip_stages."""

from typing import Any, TypedDict


class ClipGeometryRow(TypedDict):
    """What one clipping method does to several gradients, one after the other; lists are by gradient."""

    method: str
    settings: str
    scope: str
    kept: list[float]
    cosine: list[float]
    bias: float
    memory_bytes_per_parameter: float
    time_ratio_to_torch: float


class ClippedGradient(TypedDict):
    """One gradient after clipping: its length as a share of the length before, and the shares of entries in bins."""

    length: float
    cosine: float
    changed: float
    histogram: list[float]


class ClipGeometryFigure(TypedDict):
    """One gradient, clipped by norm and by value; histograms reach `reach` times the root mean square `rms`."""

    num_parameters: int
    norm: float
    max_norm: float
    max_value: float
    rms: float
    reach: int
    before: list[float]
    ways: dict[str, ClippedGradient]


class LearnedRun(TypedDict):
    """One run of a task that needs memory of a certain length."""

    kind: str
    length: int
    seed: int
    clipped: bool
    learning_rate: float
    learned: bool
    steps: int
    accuracy: float
    diverged: bool
    largest_norm: float
    clip_rate: float
    curve: list[float]


class TemporalOrderFigure(TypedDict):
    """The runs, and what was computed of a cliff and of gradients on their way back."""

    runs: list[LearnedRun]
    cliff: dict[str, Any]
    backward: list[dict[str, Any]]


class TemporalOrderRow(TypedDict):
    """One kind of network, without and with clipping; a rate and losses are None if a run diverged at every rate."""

    kind: str
    largest_norm: float
    largest_norm_with: float
    runs: int
    diverged: int
    diverged_with: int
    clip_rate: float
    best_rate: float | None
    best_loss: list[float] | None
    best_with_rate: float | None
    best_with_loss: list[float] | None


class Spikes(TypedDict):
    """How far one run's loss rises after outliers, in nats; None where it was not finite."""

    spikes: int
    highest: float | None
    lost: float | None


class SpikesOfRun(Spikes):
    """The spikes of one run, and its loss on held-out text and its norms at the end."""

    final_loss: float | None
    clip_rate: float
    usual_norm: float | None
    outlier_norm: float | None


class LossSpikesRow(TypedDict):
    """One clipping method; a run for each seed."""

    method: str
    settings: str | None
    runs: list[SpikesOfRun]


class SpikeCurve(TypedDict):
    """The loss and the norm before clipping at each step of one run; None at outliers and where not finite."""

    method: str
    seed: int
    losses: list[float | None]
    norms: list[float | None]
    outliers: list[int]


class LossSpikesFigure(TypedDict):
    """The curves of all runs, and by what rules spikes are counted."""

    held_out: float
    burst: int
    before: int
    after: int
    spike_nats: float
    betas: list[float]
    curves: list[SpikeCurve]


class ClipLane(TypedDict):
    """One way to clip: seconds and bytes of each stage of a step; what a whole backward reads and writes is None."""

    lane: str
    seconds: dict[str, float]
    memory_bytes: dict[str, int | None]
    num_parameters: int
    grad_norm: float
    clip_coef: float


class ClipStagesFigure(TypedDict):
    """The stages of a step, for each way to clip."""

    stages: list[str]
    lanes: list[ClipLane]
