"""What experiments write and the report reads: names, numbers, the schema version, where a result lies, and the rows
of tables and data of figures whose keys several modules know. Numbers are in SI base units.

Imports neither torch nor matplotlib.
"""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

SCHEMA = 1
"""Of every JSON file under runs/."""

TECHNIQUES = ("clip", "accumulate", "compress")
COMBINATIONS = (
    "none",
    "clip",
    "accumulate",
    "compress",
    "clip+accumulate",
    "clip+compress",
    "accumulate+compress",
    "clip+accumulate+compress",
)
"""All subsets of the three techniques, as the folders of the case studies' runs are named."""

NUMBERS: dict[str, int] = {
    "clip_geometry": 1,
    "temporal_order": 2,
    "window_timeline": 3,
    "accumulation_memory": 4,
    "codec_gallery": 5,
    "link_speeds": 6,
    "loss_spikes": 7,
    "clip_stages": 8,
    "large_batches": 9,
    "window_states": 10,
    "accuracy_vs_bytes": 11,
    "encode_timeline": 12,
    "combinations": 13,
    "common_failures": 14,
    "image_case": 15,
    "language_cases": 16,
    "series_case": 17,
}
"""The number that a figure and its table have on the page. Everywhere else they go by name."""

STUDIES: dict[str, str] = {
    "small_batches": "large_batches",
    "critical_batch": "large_batches",
    "muon": "loss_spikes",
    "paper_claims": "codec_gallery",
    "depth": "image_case",
}
"""Experiments without a figure of their own, which run when they are asked for by name; each with the pair in whose
place its numbers stand."""

PAYS = 0.95
"""The largest share of an uncompressed step's time at which a compression method is said to pay."""

PUBLISHED = Path(__file__).parent / "published"
"""The results that come with the package, a file for each name."""


def published_files(folder: Path = PUBLISHED) -> list[Path]:
    """Return the results of experiments that come with the package, in the order of the page."""
    return [path for path in (folder / f"{name}.json" for name in (*NUMBERS, *STUDIES)) if path.is_file()]


def number(name: str) -> int:
    """Return the number of a pair, or of the pair in whose place the numbers of a study stand."""
    return NUMBERS[STUDIES.get(name, name)]


def result_path(runs: Path, name: str) -> Path:
    """Return where the result of an experiment lies below a folder of runs."""
    return runs / name / "result.json"


def command(name: str, *, full: bool = False) -> str:
    """Return the command that makes a result again."""
    return f"tightgrad lab --only {NUMBERS.get(name, name)}" + (" --full" if full else "")


def label(name: str, part: str = "") -> str:
    """Return the label of a figure or table, such as 6 or 13b."""
    return f"{NUMBERS[name]}{part}"


def slug(kind: str, name: str, part: str = "") -> str:
    """Return the anchor and file name of a figure or table, such as table06."""
    return f"{kind}{NUMBERS[name]:02}{part}"


class LargeBatchesRow(TypedDict):
    """The runs of one batch size and rule; lists are by seed, and a run that diverged has None there."""

    batch: int
    rule: str
    learning_rate: float
    steps: int
    accuracy: list[float]
    loss: list[float | None]
    diverged: int


class LargeBatchesFigure(TypedDict):
    """The curves by batch size, rule and seed, how learning rates were found, and accumulation beside whole batches."""

    base_batch: int
    train_samples: int
    test_samples: int
    warmup_epochs: int
    rates: dict[str, float]
    tuning: list[dict[str, Any]]
    equal: NotRequired[dict[str, Any]]
    curves: list[dict[str, Any]]


class AccuracyVsBytesRow(TypedDict):
    """The runs of one method and feedback, those that diverged left out; lists are by seed."""

    method: str
    family: str
    feedback: str
    accuracy: list[float]
    loss: list[float]
    wire_bytes: list[int]
    compression_factor: list[float]
    last_step_factor: list[float]
    step_seconds: list[float]
    residual_norm: list[float | None]
    diverged: int


class AccuracyVsBytesFigure(TypedDict):
    """The losses of every run, and the methods with and without feedback at several momenta."""

    test_samples: int
    train_samples: int
    num_parameters: int
    steps: int
    dense_below: int
    dgc_local_clip: float
    dgc_start_density: float
    losses: list[dict[str, Any]]
    feedback: list[dict[str, Any]]


class LinkPoint(TypedDict):
    """One method on one link."""

    is_limited: bool
    bits_per_second: float
    plan: str
    ranks: int
    step_seconds: float
    ratio_to_no_communication: float
    wire_bytes: int
    interface_payload_bytes: int
    steps: int


class LinkSpeedsRow(TypedDict):
    """The fastest method on one link, beside dense and beside no communication."""

    ranks: int
    bits_per_second: float
    is_limited: bool
    best: str
    pays: bool
    gain: float
    no_communication_seconds: float
    dense_seconds: float
    best_seconds: float
    dense_wire_bytes: int
    best_wire_bytes: int


class LinkSpeedsFigure(TypedDict):
    """All methods on all links."""

    points: list[LinkPoint]
    num_parameters: int
    work: dict[str, int]


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
