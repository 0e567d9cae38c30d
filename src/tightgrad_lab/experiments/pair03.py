"""Pair 3: one window on a time line, and what accumulation costs and saves as K grows at the same effective batch."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.pair03_window import errors, measure
from tightgrad_lab.training.ranks import run_ranks


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        micro_batches: values of K; the first one is 1, no accumulation.
        samples: of one rank's window, whatever K is; a multiple of every K.
        shown: K of the time line.
        windows: windows of the time line, of which the one of median duration is shown.
        rounds: timed steps of each K, taken in turn.
        seeds: weights and data with which gradients are compared with the exact one.
        width: of the model.
        layers: of the model.
        ranks: processes, under DistributedDataParallel.
    """

    micro_batches: tuple[int, ...]
    samples: int
    shown: int
    windows: int
    rounds: int
    seeds: int
    width: int
    layers: int
    ranks: int = 2


class Pair03(Experiment[Settings]):
    """One window, and the price of K."""

    number: ClassVar[int] = 3

    def settings(self, *, full: bool) -> Settings:
        """A small transformer, or one of three million parameters."""
        if full:
            return Settings((1, 2, 4, 8, 16), 64, 4, 15, 21, 10, 256, 4)
        return Settings((1, 2, 4, 8, 16), 16, 4, 7, 7, 3, 128, 2)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Time, memory and traffic on ranks; gradients against the exact one."""
        torch.set_num_threads(1)
        found: dict[str, Any] = {}
        steps = 1 + settings.rounds + len(settings.micro_batches) + settings.seeds

        def receive(message: tuple[str, Any]) -> None:
            kind, value = message
            if kind == "progress":
                report(value[0] / steps, value[1])
            else:
                found[kind] = value

        run_ranks(settings.ranks, measure, (settings,), receive)
        exact = errors(settings, lambda done: report((steps - settings.seeds + done) / steps, "exact gradients"))
        table = [{**row, **exact[row["micro_batches"]]} for row in found["rows"]]
        return Measured(found["window"], table, backend="gloo")


EXPERIMENT = Pair03()
