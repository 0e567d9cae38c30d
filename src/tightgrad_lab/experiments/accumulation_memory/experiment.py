"""Accumulation where it is used: peak memory against the micro-batch, and what each wrapper makes of it."""

from dataclasses import dataclass
from typing import Any

from torch import from_numpy

from tightgrad_lab.experiments.accumulation_memory.train import (
    WRAPPERS,
    Work,
    fixed_nbytes,
    measure_both,
    measure_times,
    memory_of,
    timed,
)
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.schema.accumulation import AccumulationMemoryFigure, AccumulationMemoryRow, MemoryPoint
from tightgrad_lab.training.ranks import run_ranks


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        effective_batch: pieces of text of an optimizer step of all ranks.
        micro_batches: sizes that the figure compares; one of them is `compared`.
        compared: the micro-batch of every row of the table.
        width: of the transformer.
        layers: of the transformer.
        seeds: of weights and text, in the measurements of memory.
        rounds: steps of each that are timed.
        ranks: of the wrappers.
    """

    effective_batch: int
    micro_batches: tuple[int, ...]
    compared: int
    width: int
    layers: int
    seeds: int
    rounds: int
    ranks: int = 2

    def work(self, wrapper: str, micro_batch: int, seed: int = 0) -> Work:
        """One of the trainings."""
        return Work(wrapper, micro_batch, self.effective_batch, self.width, self.layers, seed)


class AccumulationMemory(Experiment[Settings]):
    """One effective batch, cut finer and finer."""

    def settings(self, *, full: bool) -> Settings:
        """A narrow transformer, or the wider and deeper one of the other pairs."""
        if full:
            return Settings(32, (1, 2, 4, 8, 16, 32), 4, width=256, layers=4, seeds=3, rounds=21)
        return Settings(32, (1, 2, 4, 8, 16, 32), 4, width=128, layers=2, seeds=3, rounds=7)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Memory of one process, time of one process, then the wrappers."""
        seeds = range(settings.seeds)
        single = [settings.work("single", size) for size in settings.micro_batches]
        jobs = [settings.work("single", size, seed) for size in settings.micro_batches for seed in seeds]
        peaks = dict(zip(jobs, run_all(memory_of, jobs, report, share=(0.0, 0.4)), strict=True))
        times = _times(run_and_collect(1, measure_times, (single, settings.rounds)))
        report(0.6, "time of one process")
        wrapped = [settings.work(wrapper, settings.compared) for wrapper in WRAPPERS[1:]]
        measured = [settings.work(work.wrapper, settings.compared, seed) for work in wrapped for seed in seeds]
        found = run_and_collect(settings.ranks, measure_both, (wrapped, settings.rounds, measured))
        times |= _times(found[: len(wrapped)])
        peaks |= dict(zip(measured, found[len(wrapped) :], strict=True))
        points = [_point(settings, work, peaks, times) for work in single]
        base = times[settings.work("single", settings.compared)]["weights"]
        rows: list[AccumulationMemoryRow] = []
        for work in (settings.work("single", settings.compared), *wrapped):
            ranks = 1 if work.wrapper == "single" else settings.ranks
            difference = float((from_numpy(times[work]["weights"]) - from_numpy(base)).abs().max())
            rows.append(
                {
                    "wrapper": work.wrapper,
                    "ranks": ranks,
                    "wire_bytes": times[work]["wire_bytes"],
                    **_point(settings, work, peaks, times),
                    "micro_batches": work.micro_batches(ranks),
                    "weights_difference": difference,
                }
            )
        figure: AccumulationMemoryFigure = {
            "points": points,
            "fixed_bytes": fixed_nbytes(single[0]),
            "num_parameters": len(base),
        }
        return Measured(figure, rows, backend="gloo")


def run_and_collect(ranks: int, body: Any, args: tuple[Any, ...]) -> list[Any]:
    """All that rank 0 sent, in order."""
    found: list[Any] = []
    run_ranks(ranks, body, args, found.append)
    return found


def _times(found: list[dict[str, Any]]) -> dict[Work, dict[str, Any]]:
    return {message["work"]: message for message in found}


def _point(settings: Settings, work: Work, peaks: dict[Work, int], times: dict[Work, dict[str, Any]]) -> MemoryPoint:
    own = [peaks[settings.work(work.wrapper, work.micro_batch, seed)] for seed in range(settings.seeds)]
    median, quartiles = timed(times[work]["seconds"])
    return {
        "micro_batch": work.micro_batch,
        "peak_memory_bytes": own,
        "step_seconds": median,
        "step_seconds_quartiles": quartiles,
    }


EXPERIMENT = AccumulationMemory()
