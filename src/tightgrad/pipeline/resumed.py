"""What makes a run that goes on exact, beside the state of its pipeline: generators, and what meters have seen."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tightgrad.core.global_rng import GlobalRng
from tightgrad.pipeline.meters.clip_rate import ClipRate
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
    def of(cls, clip_rate: ClipRate, step: Step | None, sent_nbytes: int) -> "Resumed":
        """Return what a run that goes on from here needs, in the window of `step` or, with None, between two."""
        noise = None if step is None or step.noise is None else step.noise.seen()
        measured = None if step is None else {"losses": step.loss.meter.seen(), "noise": noise}
        return cls(GlobalRng.now(), clip_rate.state_dict(), measured, sent_nbytes)

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
        if self.measured is None:
            return
        step.loss.meter.see_again(self.measured["losses"])
        if step.noise is not None and self.measured["noise"] is not None:
            step.noise.see_again(self.measured["noise"])
