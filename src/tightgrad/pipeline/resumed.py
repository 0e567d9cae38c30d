"""What makes a run that goes on exact, beside the state of its pipeline: generators, and what meters have seen."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tightgrad.core.global_rng import GlobalRng
from tightgrad.pipeline.meters.of_window import measure_on
from tightgrad.pipeline.step import Step

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Resumed:
    """Holds what one rank remembers of a run.

    Attributes:
        rng: state of the global generators.
        clip_rate: what was counted of clipped steps.
        measured: what meters have seen of an open window; None between windows.
        sent_nbytes: sent since the last record.
    """

    rng: GlobalRng
    clip_rate: dict[str, Any]
    measured: dict[str, Any] | None
    sent_nbytes: int

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "Resumed":
        """Return what `dataclasses.asdict` was given."""
        return cls(GlobalRng(**saved["rng"]), saved["clip_rate"], saved["measured"], saved["sent_nbytes"])

    def begun(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """Yield a loader's batches; its start does not count as a draw from the generators."""
        batches = iter(loader)
        self.rng.restore()
        yield from batches

    def reopen(self, step: Step) -> None:
        """Take up the middle of a window, whose batches were fetched again."""
        self.rng.restore()
        if self.measured is not None:
            measure_on(self.measured, step.loss.meter, step.noise)
