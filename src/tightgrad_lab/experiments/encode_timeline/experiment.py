"""Encode, collective, decode, as two ranks run them; and what other frameworks do in their place."""

from dataclasses import dataclass

from tightgrad_lab.experiments.encode_timeline.path import PLANS, STAGES, Lane, measure
from tightgrad_lab.experiments.encode_timeline.peers import HOOKS
from tightgrad_lab.experiments.encode_timeline.table import make_table
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.schema.compression import EncodeLane, EncodeTimelineFigure
from tightgrad_lab.training.ranks import run_ranks


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        plans: in the figure.
        warm_up: steps that are not counted.
        steps: steps of each plan that are.
        batch_size: pieces of text of one rank's step.
        hooks: of torch, in the table.
        accelerate: kinds of hook that Accelerate registers, in the table.
        seconds: after how long a run of the table counts as hanging.
        ranks: processes.
    """

    plans: tuple[str, ...]
    warm_up: int
    steps: int
    batch_size: int
    hooks: tuple[str, ...]
    accelerate: tuple[str, ...]
    seconds: float
    ranks: int = 2


class EncodeTimeline(Experiment[Settings]):
    """The stages of compression, and the frameworks."""

    def settings(self, *, full: bool) -> Settings:
        """A few steps of each plan, and every hook once."""
        steps = 50 if full else 6
        return Settings(tuple(PLANS), 3, steps, 4, tuple(HOOKS), ("fp16", "power_sgd"), seconds=8.0)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Measure the path, then run the hooks."""
        lanes = [Lane(plan, settings.warm_up, settings.steps, settings.batch_size) for plan in settings.plans]
        found: list[EncodeLane] = []

        def receive(message: EncodeLane) -> None:
            found.append(message)
            report(0.4 * len(found) / len(lanes), message["plan"])

        run_ranks(settings.ranks, measure, (lanes,), receive)
        table = make_table(
            settings.hooks, settings.accelerate, settings.seconds, lambda share, text: report(0.4 + 0.6 * share, text)
        )
        figure: EncodeTimelineFigure = {"stages": list(STAGES), "ranks": settings.ranks, "lanes": found}
        return Measured(figure, table, backend="gloo")


EXPERIMENT = EncodeTimeline()
