"""Windows of ragged micro-batches under DistributedDataParallel: when what happened, and what it cost."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad.collectives import run_threaded
from tightgrad.core.protocols import Collective
from tightgrad_lab.bench.accumulate import lingering
from tightgrad_lab.common import byte_model, verse
from tightgrad_lab.experiments.window_timeline.settings import Settings
from tightgrad_lab.schema.accumulation import WindowCost, WindowErrors, WindowEvent, WindowTimelineFigure
from tightgrad_lab.training.memory import peak_memory
from tightgrad_lab.training.ranks import Rank, Send

MEMORY_STEPS = 2  # optimizer state exists in the second
MEMORY_TRIES = 2


def measure(rank: Rank, send: Send, settings: Settings) -> None:
    """The time line, and a row for each K; rank 0 sends them. Collective: runs on every rank."""
    torch.set_num_threads(1)
    tell = send if rank.rank == 0 else _silent
    tell(("progress", (0, "the time line")))
    window = timeline(rank, settings)
    runs = {k: Training(rank, settings, k) for k in settings.micro_batches}
    for run in runs.values():
        run.step()
    seconds: dict[int, list[float]] = {k: [] for k in runs}
    for index in range(settings.rounds):
        tell(("progress", (1 + index, f"round {index + 1}")))
        for k in list(runs) if index % 2 else list(reversed(runs)):
            dist.barrier()
            start = time.perf_counter()
            runs[k].step()
            seconds[k].append(time.perf_counter() - start)
    rows: list[WindowCost] = []
    for place, k in enumerate(settings.micro_batches):
        tell(("progress", (1 + settings.rounds + place, f"memory at K={k}")))
        with lingering():
            peak = peak_memory(lambda k=k: _few_steps(rank, settings, k), rank.device, MEMORY_TRIES)  # type: ignore[misc]
        per_sample = [value / (settings.samples * rank.ranks) for value in seconds[k]]
        rows.append(
            {
                "micro_batches": k,
                "samples": settings.samples // k,
                "peak_memory_bytes": peak,
                "seconds_per_sample": statistics.median(per_sample),
                "seconds_quartiles": statistics.quantiles(per_sample, n=4)[::2],
                "wire_bytes": runs[k].step_sent,
                "wire_bytes_if_each_synced": runs[k].gradient_sent * k,
            }
        )
    tell(("window", window))
    tell(("rows", rows))


def _silent(message: Any) -> None:
    """Only rank 0 speaks."""


class Training:
    """A model, and windows of K micro-batches without end."""

    def __init__(self, rank: Rank, settings: Settings, micro_batches: int) -> None:
        torch.manual_seed(0)
        self.model = byte_model.ByteTransformer(settings.width, settings.layers)
        self.ddp = DistributedDataParallel(self.model)
        self.records: list[tg.StepRecord] = []
        optimizer = torch.optim.AdamW(self.model.parameters(), byte_model.LEARNING_RATE)
        plan = tg.Plan(accumulate=tg.Accumulate(micro_batches), clip=tg.clip.GlobalNorm(1.0))
        self.pipe = tg.attach(self.ddp, optimizer, plan, weight=verse.weight)
        self._windows = self.pipe.windows(_batches(rank.rank, settings.samples // micro_batches, seed=0))

    @property
    def gradient_sent(self) -> int:
        """Bytes that a rank sends for one all-reduce of the gradient."""
        ranks = dist.get_world_size()
        return round(2 * (ranks - 1) / ranks * sum(p.numel() * p.element_size() for p in self.model.parameters()))

    @property
    def step_sent(self) -> int:
        """Bytes that this rank sent in the last step."""
        sent = self.records[-1].wire_bytes
        assert sent is not None
        return sent

    def step(self) -> None:
        """One window."""
        window = next(self._windows)
        for pieces in window:
            self.pipe.backward(verse.loss(self.ddp, pieces))
        self.records.append(self.pipe.step())


def _few_steps(rank: Rank, settings: Settings, micro_batches: int) -> None:
    run = Training(rank, settings, micro_batches)
    for _ in range(MEMORY_STEPS):
        run.step()


def _batches(rank: int, samples: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    while True:
        yield verse.batch(samples, generator)


def timeline(rank: Rank, settings: Settings) -> WindowTimelineFigure:
    """The window of median duration: what each rank did when, in seconds since the window's first forward.

    DDP's all-reduce of a bucket is timed by a hook that does what DDP does without one.
    """
    run = Training(rank, settings, settings.shown)
    spans: list[tuple[float, float]] = []

    def timed(state: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        begin = time.perf_counter()

        def done(future: torch.futures.Future[Tensor]) -> Tensor:
            spans.append((begin, time.perf_counter()))
            return future.value()

        return allreduce_hook(None, bucket).then(done)  # type: ignore[arg-type]

    run.ddp.register_comm_hook(None, timed)
    run.step()  # DDP builds its buckets anew after the first backward
    windows = [_timed_window(run, spans, rank.rank) for _ in range(settings.windows)]
    everyone: list[list[_Timed]] = [[] for _ in range(rank.ranks)]
    dist.all_gather_object(everyone, windows)
    spent = [max(event["end"] for own in everyone for event in own[i]["events"]) for i in range(settings.windows)]
    chosen = spent.index(statistics.median_low(spent))
    together = [own[chosen] for own in everyone]
    begin = min(event["begin"] for own in together for event in own["events"])
    events: list[WindowEvent] = [
        {**event, "begin": event["begin"] - begin, "end": event["end"] - begin}
        for own in together
        for event in own["events"]
    ]
    return {
        "micro_batches": settings.shown,
        "ranks": rank.ranks,
        "events": events,
        "total_weight": together[0]["total_weight"],
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "wire_bytes": together[0]["wire_bytes"],
    }


class _Timed(TypedDict):
    events: list[WindowEvent]
    total_weight: float
    wire_bytes: int


def _timed_window(run: Training, spans: list[tuple[float, float]], rank: int) -> _Timed:
    window = next(run._windows)
    spans.clear()
    events: list[WindowEvent] = []

    def note(kind: str, begin: float, index: int | None = None) -> float:
        now = time.perf_counter()
        weight = None if index is None else next(iter(window.weights[index].values()))
        events.append({"rank": rank, "kind": kind, "micro_batch": index, "weight": weight, "begin": begin, "end": now})
        return now

    dist.barrier()
    now = time.perf_counter()
    for index, pieces in enumerate(window):
        loss = verse.loss(run.ddp, pieces)
        now = note("forward", now, index)
        run.pipe.backward(loss)
        now = note("backward", now, index)
    run.records.append(run.pipe.step())
    note("step", now)
    for begin, end in spans:
        events.append({"rank": rank, "kind": "sync", "micro_batch": None, "weight": None, "begin": begin, "end": end})
    return {"events": events, "total_weight": window.total_weight, "wire_bytes": run.step_sent}


def errors(settings: Settings, done: Callable[[int], None]) -> dict[int, WindowErrors]:
    """For each K, the relative errors over seeds of what is delivered, and of the loop that divides by K.

    The target is the gradient of all samples of all ranks as one batch, on one device, in float64. Ranks are threads.
    """
    found: dict[int, WindowErrors] = {
        k: {"relative_error": [], "relative_error_of_loop": []} for k in settings.micro_batches
    }
    for seed in range(settings.seeds):
        done(seed)
        torch.manual_seed(seed)
        model = byte_model.ByteTransformer(settings.width, settings.layers)
        samples = [next(_batches(rank, settings.samples, 1 + seed)) for rank in range(settings.ranks)]
        exact = verse.gradient(copy.deepcopy(model).double(), samples)
        for k, row in found.items():
            pieces = [list(own.split(settings.samples // k)) for own in samples]
            row["relative_error"].append(_error(_delivered(model, pieces, k), exact))
            row["relative_error_of_loop"].append(_error(_divided_by_k(model, pieces), exact))
    return found


def _error(have: Tensor, want: Tensor) -> float:
    return float((have.double() - want).norm() / want.norm())


def _delivered(model: nn.Module, pieces: list[list[Tensor]], micro_batches: int) -> Tensor:
    def body(collective: Collective) -> Tensor:
        own = copy.deepcopy(model)
        captured: list[Tensor] = []

        class Capture(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                captured.append(verse.flat_gradient(own).clone())

        plan = tg.Plan(accumulate=tg.Accumulate(micro_batches))
        pipe = tg.attach(own, Capture(own.parameters(), lr=0.0), plan, weight=verse.weight, collective=collective)
        for window in pipe.windows(pieces[collective.rank]):
            for batch in window:
                pipe.backward(verse.loss(own, batch))
            pipe.step()
        return captured[0]

    return run_threaded(len(pieces), body)[0]


def _divided_by_k(model: nn.Module, pieces: list[list[Tensor]]) -> Tensor:
    """The mean over ranks of the sum of losses over K: the loop that most people write, under DDP."""
    own = copy.deepcopy(model)
    for batches in pieces:
        for batch in batches:
            (verse.loss(own, batch) / (len(batches) * len(pieces))).backward()
    return verse.flat_gradient(own)
