"""The window's state machine as it ran: every state that real windows of two ranks passed, in order.

Four windows of Shakespeare's lines under DistributedDataParallel: one as usual; one in which rank 1 runs out of memory
half-way, so that all ranks cut their micro-batches and begin the window again; one with a loss that is not finite on
rank 0, which all skip; and a last, shorter one. The states are told by what the loop itself sees (batches fetched,
losses asked for, steps of the optimizer) and by the records of the steps.
"""

import copy
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad.accumulate import Window
from tightgrad_lab.common import byte_model, verse
from tightgrad_lab.experiments.window_states.settings import Settings
from tightgrad_lab.experiments.window_states.windows import Recorder
from tightgrad_lab.schema.accumulation import StateMachine

STATES = ("fetch", "count", "micro_batch", "out_of_memory", "vote", "cut", "guard", "skip", "reduce", "clip", "step")
KINDS = ("full", "out_of_memory", "nonfinite", "partial")
"""The windows, in order."""
LAST = (2, 1)
"""Micro-batches of the last window, by rank."""
STAGES = {"guard": "guard", "reduce": "collective", "clip": "clip"}
"""The stage of the record that times a state. The optimizer here only keeps what it is given, so it is not timed."""
MAX_NORM = 0.5


class Walk:
    """One rank's windows, and the states that each passed."""

    def __init__(self, rank: int, settings: Settings) -> None:
        self.rank, self.settings = rank, settings
        torch.manual_seed(0)
        self.model = byte_model.ByteTransformer(settings.width, settings.layers)
        self.ddp = DistributedDataParallel(self.model)
        self.optimizer = Recorder(self.model)
        plan = tg.Plan(
            accumulate=tg.Accumulate(settings.micro_batches, on_oom="split"),
            guard=tg.Guard("skip"),
            clip=tg.clip.GlobalNorm(MAX_NORM),
        )
        self.pipe = tg.attach(self.ddp, self.optimizer, plan, weight=verse.weight)
        self.fetched = 0
        self.windows: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """Run all windows."""
        for kind, window in zip(KINDS, self.pipe.windows(self._loader()), strict=True):
            self.windows.append(self._run(kind, window))
        return self.windows

    def _loader(self) -> Iterator[Tensor]:
        for pieces in batches(self.rank, self.settings):
            self.fetched += 1
            yield pieces

    def _run(self, kind: str, window: Window[Tensor]) -> dict[str, Any]:
        fetched, self.fetched = self.fetched, 0
        samples = sum(len(pieces) for pieces in window.batches)
        attempts: list[list[str]] = []
        left, seconds = 0, 0.0

        def loss_of(pieces: Tensor) -> Tensor:
            nonlocal left, seconds
            if not torch.is_grad_enabled():  # the pipeline looks whether pieces add up, before it cuts
                return verse.loss(self.ddp, pieces)
            if not left:
                attempts.append([])
                left = samples
            attempt = attempts[-1]
            is_half_way = len(attempt) == self.settings.micro_batches // 2
            if kind == "out_of_memory" and self.rank == 1 and len(attempts) == 1 and is_half_way:
                attempt.append("out_of_memory")
                left = 0
                raise torch.OutOfMemoryError("out of memory (provoked)")
            attempt.append("micro_batch")
            left -= len(pieces)
            start = time.perf_counter()
            loss = verse.loss(self.ddp, pieces)
            seconds += time.perf_counter() - start
            return loss * torch.inf if kind == "nonfinite" and self.rank == 0 and is_half_way else loss

        record = self.pipe.run(window, loss_of)
        gradient = None
        if not record.skipped:
            gradient = self.optimizer.taken[-1][1] / (record.clip_coef or 1.0)
        return {
            "kind": kind,
            "path": path_of(fetched, attempts, skipped=record.skipped),
            "micro_batches": len(window),
            "record": record.to_dict(),
            "forward_seconds": seconds,
            "gradient": gradient,
        }


def batches(rank: int, settings: Settings) -> list[Tensor]:
    """All of a rank's micro-batches."""
    generator = torch.Generator().manual_seed(rank)
    count = settings.micro_batches * (len(KINDS) - 1) + LAST[rank]
    return [verse.batch(settings.batch_size, generator) for _ in range(count)]


def path_of(fetched: int, attempts: Sequence[Sequence[str]], *, skipped: bool) -> list[str]:
    """The states of one window on one rank.

    Args:
        fetched: batches taken from the loader.
        attempts: the micro-batches of each attempt; the last state of one that failed is "out_of_memory".
        skipped: whether the step was not applied.
    """
    path = ["fetch"] * fetched + ["count"]
    for number, attempt in enumerate(attempts):
        path += ["cut"] * (number > 0) + [*attempt, "vote"]
    return path + ["guard"] + (["skip"] if skipped else ["reduce", "clip", "step"])


def run_machine(rank: int, settings: Settings) -> StateMachine:
    """What the figure shows. Collective: runs on every rank; what rank 0 gives counts."""
    torch.set_num_threads(1)
    windows = Walk(rank, settings).run()
    everyone: list[list[dict[str, Any]]] = [[] for _ in range(settings.ranks)]
    dist.all_gather_object(everyone, windows)
    return summary(everyone, settings)


def summary(everyone: Sequence[Sequence[Mapping[str, Any]]], settings: Settings) -> StateMachine:
    """Put together the windows of all ranks."""
    steps = Counter(edge for own in everyone for edge in pairwise(state for one in own for state in one["path"]))
    visits = Counter(state for own in everyone for one in own for state in one["path"])
    first = everyone[0]
    model = _model(settings)
    return {
        "micro_batches": settings.micro_batches,
        "ranks": settings.ranks,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "states": [{"state": state, "visits": visits[state], "seconds": _seconds(state, first)} for state in STATES],
        "transitions": [{"from": begin, "to": end, "count": count} for (begin, end), count in steps.items()],
        "windows": [
            {
                "kind": kind,
                "micro_batches": [own[place]["micro_batches"] for own in everyone],
                "backwards": [own[place]["path"].count("micro_batch") for own in everyone],
                "weight": first[place]["record"]["weight"],
                "retries": first[place]["record"]["retries"],
                "skipped": first[place]["record"]["skipped"],
                "wire_bytes": first[place]["record"]["wire_bytes"],
                "relative_error": _error(first[place]["gradient"], place, settings),
            }
            for place, kind in enumerate(KINDS)
        ],
    }


def _model(settings: Settings) -> byte_model.ByteTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return byte_model.ByteTransformer(settings.width, settings.layers)


def _seconds(state: str, windows: Sequence[Mapping[str, Any]]) -> float | None:
    """Of one visit, the median over windows; None of what is not timed."""
    found = []
    for window in windows:
        stages = window["record"]["stage_seconds"]
        if state == "micro_batch":
            spent = window["forward_seconds"] + stages.get("backward", 0.0) + stages.get("accumulate", 0.0)
            found.append(spent / window["path"].count(state))
        elif state in STAGES and state in window["path"]:
            found.append(stages.get(STAGES[state], 0.0))
    return statistics.median(found) if found else None


def _error(gradient: Tensor | None, place: int, settings: Settings) -> float | None:
    """Of the delivered gradient, against that of all ranks' batches as one, in float64; None if it was skipped."""
    if gradient is None:
        return None
    start = place * settings.micro_batches
    window = [
        pieces
        for rank in range(settings.ranks)
        for pieces in batches(rank, settings)[start : start + settings.micro_batches]
    ]
    exact = verse.gradient(copy.deepcopy(_model(settings)).double(), window)
    return float((gradient.double() - exact).norm() / exact.norm())
