"""One window on a time line, and what accumulation costs and saves as K grows at the same effective batch."""

from typing import Any

import torch

from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.window_timeline.settings import Settings
from tightgrad_lab.experiments.window_timeline.window import errors, measure
from tightgrad_lab.schema.accumulation import WindowCost, WindowTimelineRow
from tightgrad_lab.training.ranks import run_ranks


class WindowTimeline(Experiment[Settings]):
    """One window, and the price of K."""

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
        rows: list[WindowCost] = found["rows"]
        table: list[WindowTimelineRow] = [{**row, **exact[row["micro_batches"]]} for row in rows]
        return Measured(found["window"], table, backend="gloo")


EXPERIMENT = WindowTimeline()
