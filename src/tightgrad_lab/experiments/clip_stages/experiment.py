"""The stages of a clipped step with their times; and the same clipping in other frameworks.

Frameworks that this machine lacks keep their rows of the published result, each with the time of its measurement.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch

from tightgrad_lab import schema
from tightgrad_lab.bench.frameworks import compare_frameworks, missing_frameworks
from tightgrad_lab.bench.frameworks.framework import NAMES
from tightgrad_lab.experiments.clip_stages.path import STAGES, measure_lanes
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report

PUBLISHED = schema.PUBLISHED / "clip_stages.json"
SHARE_OF_LANES = 0.6


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        warm_up: steps of each lane that are not counted.
        steps: steps of each lane that are.
        micro_batches: of each step.
        batch_size: pieces of text of one micro-batch.
        trees: random trees of gradients for each function of a framework.
        repeats: timed runs of each.
        threads: that compute.
    """

    warm_up: int
    steps: int
    micro_batches: int
    batch_size: int
    trees: int
    repeats: int
    threads: int = 1


class ClipStages(Experiment[Settings]):
    """The path of clipping, and the frameworks."""

    def settings(self, *, full: bool) -> Settings:
        """A few steps and trees, or many."""
        if full:
            return Settings(3, 30, micro_batches=2, batch_size=4, trees=20, repeats=15)
        return Settings(2, 7, micro_batches=2, batch_size=4, trees=5, repeats=7)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Measure the path, then compare."""
        torch.set_num_threads(settings.threads)
        lanes = measure_lanes(
            settings.warm_up,
            settings.steps,
            settings.micro_batches,
            settings.batch_size,
            lambda share: report(SHARE_OF_LANES * share, "stages"),
        )
        measured = compare_frameworks(
            num_trees=settings.trees,
            repeats=settings.repeats,
            progress=lambda line: report(SHARE_OF_LANES + 0.3, line),
        )
        table = [{**row, "measured": None} for row in measured] + published_rows(missing_frameworks())
        return Measured({"stages": list(STAGES), "lanes": lanes}, table)


def published_rows(missing: list[str]) -> list[dict[str, Any]]:
    """The published rows of frameworks, each with the time at which it was "measured"."""
    if not missing or not PUBLISHED.exists():
        return []
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    names = {NAMES[name] for name in missing}
    return [
        {**row, "measured": published["environment"]["time"]}
        for row in published["table"]
        if row["framework"] in names and row["measured"] is None
    ]


EXPERIMENT = ClipStages()
