"""The rows and figures of window_timeline, accumulation_memory, large_batches and window_states."""

from typing import Any, NotRequired, TypedDict


class WindowCost(TypedDict):
    """What one K costs at the same effective batch."""

    micro_batches: int
    samples: int
    peak_memory_bytes: int
    seconds_per_sample: float
    seconds_quartiles: list[float]
    wire_bytes: int
    wire_bytes_if_each_synced: int


class WindowErrors(TypedDict):
    """How the gradient of one K is off, here and in the loop that divides by K; a number for each seed."""

    relative_error: list[float]
    relative_error_of_loop: list[float]


class WindowTimelineRow(WindowCost, WindowErrors):
    """One K."""


class WindowEvent(TypedDict):
    """What one rank did from `begin` to `end`, in seconds; a sync and the step belong to no micro-batch."""

    rank: int
    kind: str
    micro_batch: int | None
    weight: float | None
    begin: float
    end: float


class WindowTimelineFigure(TypedDict):
    """One window of all ranks."""

    micro_batches: int
    ranks: int
    events: list[WindowEvent]
    total_weight: float
    parameters: int
    wire_bytes: int


class MemoryPoint(TypedDict):
    """One size of micro-batch; peaks are by seed."""

    micro_batch: int
    peak_memory_bytes: list[int]
    step_seconds: float
    step_seconds_quartiles: list[float]


class AccumulationMemoryRow(MemoryPoint):
    """One wrapper at the compared micro-batch."""

    wrapper: str
    ranks: int
    wire_bytes: int
    micro_batches: int
    weights_difference: float


class AccumulationMemoryFigure(TypedDict):
    """Memory and time of one process over the size of the micro-batch."""

    points: list[MemoryPoint]
    fixed_bytes: int
    num_parameters: int


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


class StepCell(TypedDict):
    """How a framework's step on one kind of window is off; lists are by seed, None where it is not finite."""

    outcome: str
    gain: list[float | None]
    relative_error: list[float | None]
    cosine: list[float | None]


class OutOfMemoryCell(TypedDict):
    """What becomes of each rank when one runs out of memory; numbers where the step is taken all the same."""

    outcome: str
    by_rank: list[str]
    relative_error: float | None
    retries: int | None


class WindowStatesRow(TypedDict):
    """One loop; None where it was not run, `measured` when an earlier machine ran it."""

    loop: str
    framework: str
    version: str | None
    method: str
    ranks: int
    equal: StepCell | None
    ragged: StepCell | None
    partial: StepCell | None
    next: StepCell | None
    empty: StepCell | None
    out_of_memory: OutOfMemoryCell | None
    measured: str | None


class StateVisits(TypedDict):
    """How often a state was passed by all ranks, and the seconds of one visit where they are timed."""

    state: str
    visits: int
    seconds: float | None


class MachineWindow(TypedDict):
    """One window of the state machine; lists are by rank, the other numbers are the first rank's."""

    kind: str
    micro_batches: list[int]
    backwards: list[int]
    weight: float
    retries: int
    skipped: bool
    wire_bytes: int
    relative_error: float | None


class StateMachine(TypedDict):
    """The states that windows pass; a transition has "from", "to" and "count"."""

    micro_batches: int
    ranks: int
    parameters: int
    states: list[StateVisits]
    transitions: list[dict[str, Any]]
    windows: list[MachineWindow]


class WindowStatesFigure(StateMachine):
    """The state machine, and what the loops of the table are given: tokens by scenario, rank and micro-batch."""

    tokens: dict[str, list[list[int]]]
    memory: dict[str, int]
