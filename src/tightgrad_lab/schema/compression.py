"""The rows and figures of codec_gallery, link_speeds, accuracy_vs_bytes and encode_timeline."""

from typing import Any, TypedDict


class CodecRow(TypedDict):
    """One codec on one gradient; None where a number makes no sense, as a speed across rounds of communication."""

    codec: str
    id: str
    nbytes: int
    compression_factor: float
    relative_error: float
    cosine: float | None
    unbiased: bool
    averaged_error: float | None
    encode_bytes_per_second: float | None
    decode_bytes_per_second: float | None


class CodecFamily(TypedDict):
    """What one family delivers of a layer, and what is left behind: a strip of values and the shares in bins."""

    family: str
    method: str
    strip: list[float]
    nbytes: int
    compression_factor: float
    relative_error: float
    after: list[float]
    residual: list[float]
    num_values: int


class CodecGalleryFigure(TypedDict):
    """One layer's gradient before and after each family, in units of its root mean square."""

    layer: str
    shape: list[int]
    num_parameters: int
    loss: float
    reach: float
    before: list[float]
    strip: list[float]
    families: list[CodecFamily]


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


class EncodeLane(TypedDict):
    """One plan: median seconds of each stage, and the bytes of one step and of one encoded gradient of a rank."""

    plan: str
    method: str
    reducer: str
    feedback: str | None
    seconds: dict[str, float]
    wire_bytes: float
    by_collective: dict[str, float]
    payload_bytes: int | None
    gradient_bytes: int
    residual_norm: float | None


class EncodeTimelineFigure(TypedDict):
    """The stages of compression under each plan."""

    stages: list[str]
    ranks: int
    lanes: list[EncodeLane]


class PeerCell(TypedDict):
    """One claim about a framework: how it came out, whether it was run or is quoted, and from where."""

    value: str
    how: str
    source: str


class EncodeTimelineRow(TypedDict):
    """One framework's method."""

    framework: str
    method: str
    ddp: PeerCell
    fsdp2: PeerCell
    feedback: PeerCell
    resume: PeerCell
    cpu: PeerCell
