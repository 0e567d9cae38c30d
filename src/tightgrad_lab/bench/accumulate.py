"""`tightgrad bench accumulate`: accumulation next to a hand-written loop, Accelerate and Lightning, in paired runs.

In each round every loop takes three optimizer steps in a row, of which two count, in an order of loops that is drawn;
a ratio is the median over rounds of its seconds, those of the slowest rank, over the hand-written loop's in the same
round. The first step does not count: after others' steps, what only this loop runs is in no cache, whereas in training
a step follows its own kind. Where a model's tensors come to lie makes its steps faster or slower by percents, so the
loop by hand and TightGrad take turns at one model and one optimizer state; peers that wrap the model in their own way
have their own. All is done again in fresh processes, and the ratio is the median over them. The loop by hand takes part
twice: what the second is off by is what this cannot tell, and the mean of the two is a base with less noise than
either. TightGrad fetches a window's batches before its first backward; with `fetch="batch"`, one at a time as the loop
by hand does, it is measured in processes of its own, since a model under FSDP2 serves one pipeline. Before that, each
loop trains a model of its own for a few steps, all from the same weights, and they must come out the same.
"""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from tightgrad_lab.bench.loops import LOOPS, WRAPPERS, Loop, Steps, Work
from tightgrad_lab.bench.sent import sent_nbytes
from tightgrad_lab.training.memory import peak_memory
from tightgrad_lab.training.ranks import Rank, Send, run_ranks

WARM_UP = 3
STEPS_OF_A_ROUND = 2
MEMORY_TRIES = 3
LINGER_SECONDS = 0.002
MEMORY_STEPS = 3  # optimizer state exists from the second on
FETCHES = ("window", "batch")

Row = dict[str, Any]
Seconds = dict[str, list[float]]


def run(
    wrappers: Sequence[str] = WRAPPERS,
    fetches: Sequence[str] = FETCHES,
    rounds: int = 31,
    ranks: int = 2,
    repeats: int = 1,
    work: Work | None = None,
    progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure, with one thread a rank.

    Args:
        wrappers: which to measure.
        fetches: when TightGrad fetches batches; peers are measured with "window".
        rounds: how often each loop takes its turn, at least 2.
        ranks: of ddp and fsdp2, over gloo.
        repeats: how often all is measured, in fresh processes.
        work: what is trained; None for the usual model.
        progress: called with a line before each wrapper.

    Returns:
        {"rows": one for each wrapper and loop; "missing": peers that are not installed}. `time_ratios` are those of the
        repeats, `time_ratio_quartiles` of all rounds; `time_ratio_to_both_loops` is to the mean of the two loops by
        hand in the same round. `wire_bytes` is what rank 0 sends in a step, parameters under FSDP2 included;
        `weights_difference` is the largest difference of a parameter from the hand-written loop's, after a few steps
        of each on its own model. `cpu_time_ratio_to_loop` leaves out waiting, for the network and for a busy machine
        alike.
    """
    found: dict[str, list[Row]] = {}

    def add(rows: list[Row]) -> None:
        for row in rows:
            found.setdefault(row["name"], []).append(row)

    for repeat in range(repeats):
        for wrapper, fetch in itertools.product(wrappers, fetches):
            progress(f"{wrapper}, fetch={fetch}, {rounds} rounds, {repeat + 1} of {repeats}")
            asked = replace(work or Work(), wrapper=wrapper, fetch=fetch)
            run_ranks(1 if wrapper == "plain" else ranks, _measure, (asked, rounds, repeat), add)
    rows = [_combined(own) for own in found.values()]
    return {"rows": rows, "missing": [loop.needs for loop in LOOPS if not _is_installed(loop)]}


def _combined(own: list[Row]) -> Row:
    """One row of a loop's repeats."""
    median = {
        key: statistics.median(row[key] for row in own)
        for key in (
            "time_ratio_to_loop",
            "time_ratio_to_both_loops",
            "cpu_time_ratio_to_loop",
            "step_seconds",
            "peak_memory_ratio_to_loop",
        )
    }
    ratios = [ratio for row in own for ratio in row["ratios"]]
    first, _, third = statistics.quantiles(ratios)
    return {
        **{key: value for key, value in own[0].items() if key != "ratios"},
        **median,
        "time_ratios": [row["time_ratio_to_loop"] for row in own],
        "time_ratios_to_both_loops": [row["time_ratio_to_both_loops"] for row in own],
        "time_ratio_quartiles": [first, third],
        "peak_memory_bytes": statistics.median_low(row["peak_memory_bytes"] for row in own),
        "weights_difference": max(row["weights_difference"] for row in own),
    }


def _takes_part(loop: Loop, work: Work) -> bool:
    """Peers fetch as the loop by hand does, and are measured once."""
    shares_model = loop.on is not None
    return work.wrapper in loop.wrappers and _is_installed(loop) and (work.fetch == "window" or shares_model)


def _is_installed(loop: Loop) -> bool:
    return loop.needs is None or find_spec(loop.needs) is not None


def _measure(rank: Rank, send: Send, work: Work, rounds: int, repeat: int) -> None:
    torch.set_num_threads(1)
    named = [loop for loop in LOOPS if _takes_part(loop, work)]
    first = repeat % len(named)
    loops = named[first:] + named[:first]
    differences = _differences({loop.name: loop.steps(work) for loop in loops})
    made = work.made()
    running = {loop.name: loop.on(work, work.twin(made)) if loop.on is not None else loop.steps(work) for loop in loops}
    for steps in running.values():
        _advanced(steps)
    seconds, cpu_seconds = _time(running, rounds)
    sent = {name: _sent(steps, rank) for name, steps in running.items()}
    _close(running)
    memory = {loop.name: memory_of(loop, work, rank.device) for loop in loops}
    if rank.rank > 0:
        return
    names = {loop.name: loop.name for loop in named}
    if work.fetch == "batch":
        names = {"tightgrad": "tightgrad, fetch=batch"}
    both = [(one + other) / 2 for one, other in zip(seconds["loop"], seconds["loop, again"], strict=True)]
    send(
        [
            {
                "name": f"{work.wrapper}: {title}",
                "time_ratio_to_loop": _ratio(seconds[name], seconds["loop"]),
                "time_ratio_to_both_loops": _ratio(seconds[name], both),
                "peak_memory_ratio_to_loop": memory[name] / memory["loop"],
                "wire_bytes": sent[name],
                "ratios": _ratios(seconds[name], seconds["loop"]),
                "cpu_time_ratio_to_loop": _ratio(cpu_seconds[name], cpu_seconds["loop"]),
                "step_seconds": statistics.median(seconds[name]),
                "peak_memory_bytes": memory[name],
                "weights_difference": differences[name],
                "ranks": rank.ranks,
                "rounds": rounds,
            }
            for name, title in names.items()
        ]
    )


def _differences(running: dict[str, Steps]) -> dict[str, float]:
    """How far each loop's weights are from the hand-written loop's after the same steps; closes them."""
    models = {name: _advanced(steps) for name, steps in running.items()}
    differences = {name: _difference(model, models["loop"]) for name, model in models.items()}
    _close(running)
    return differences


def _advanced(steps: Steps) -> nn.Module:
    return [next(steps) for _ in range(WARM_UP)][-1]


def _close(running: dict[str, Steps]) -> None:
    for steps in running.values():
        steps.close()  # type: ignore[attr-defined]


def _time(running: dict[str, Steps], rounds: int) -> tuple[Seconds, Seconds]:
    """Seconds of a step in each round, on the clock of the slowest rank and of this process's threads."""
    seconds: Seconds = {name: [] for name in running}
    cpu_seconds: Seconds = {name: [] for name in running}
    names = list(running)
    chooser = random.Random(0)  # the same order on every rank
    for _ in range(rounds):
        for name in chooser.sample(names, len(names)):
            next(running[name])
            dist.barrier()
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(STEPS_OF_A_ROUND):
                next(running[name])
            seconds[name].append((time.perf_counter() - start) / STEPS_OF_A_ROUND)
            cpu_seconds[name].append((time.process_time() - cpu_start) / STEPS_OF_A_ROUND)
    slowest = torch.tensor([seconds[name] for name in names], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return dict(zip(names, slowest.tolist(), strict=True)), cpu_seconds


def _ratio(mine: list[float], base: list[float]) -> float:
    return statistics.median(_ratios(mine, base))


def _ratios(mine: list[float], base: list[float]) -> list[float]:
    return [own / other for own, other in zip(mine, base, strict=True)]


def _sent(steps: Steps, rank: Rank) -> int:
    return sent_nbytes(lambda: next(steps), rank.rank, rank.ranks)


def memory_of(loop: Loop, work: Work, device: torch.device) -> int:
    """Most bytes of live tensors in a few steps, everything included. Collective: every rank must call it."""
    with lingering():
        return peak_memory(lambda: loop.few(work, MEMORY_STEPS), device, MEMORY_TRIES)


@contextmanager
def lingering() -> Iterator[None]:
    """Wait for a collective until gloo's thread has let its tensors go: the profiler only sees what this one frees."""

    def wait(work: dist.Work, *args: Any) -> Any:
        result = _WAIT(work, *args)
        time.sleep(LINGER_SECONDS)
        return result

    with patch.object(dist.Work, "wait", wait):
        yield


_WAIT = dist.Work.wait


def _difference(model: nn.Module, base: nn.Module) -> float:
    pairs = zip(model.parameters(), base.parameters(), strict=True)
    return max(float((_local(own) - _local(other)).abs().max()) for own, other in pairs)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
