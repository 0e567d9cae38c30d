"""How a window ends without a step: on all ranks, or on one that tells the others."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from tightgrad.accumulate import Window
from tightgrad.accumulate.count import WindowLeftError
from tightgrad.accumulate.windows import NEEDS_WINDOW
from tightgrad.core.errors import CommunicationError, UnsupportedError, UsageError
from tightgrad.core.other_ranks import cause
from tightgrad.pipeline.checkpoints import Checkpoints
from tightgrad.pipeline.step import Step


class Leaving(Checkpoints):
    """Drops windows; its methods are those of `GradientPipeline`."""

    _is_begun = False
    """Whether there may be something to forget: a window was asked for, and its step was not applied."""
    _has_run = False
    """Whether a step was begun in the window, after its last backward."""

    def _open_step(self, method: str) -> Step:
        self.ownership.check()
        if self._step is None:
            raise UsageError(f"{method}() {NEEDS_WINDOW}")
        return self._step

    def abandon(self) -> None:
        """Drop the open window and its gradients, after an error in the loop; nothing else changes.

        Collective: every rank must call it, also one whose `backward` or `step` has raised, or come to its `step`,
        which then raises `UsageError` and names this rank and the error that is being handled here. Where ranks wait in
        a backward for that of this one (a wrapper that sums by itself, `overlap="backward"`), they wait on: end the
        process, so that they stop. The batches that were fetched are gone, with `fetch="batch"` perhaps not as many on
        each rank.
        """
        if not self.ownership.is_held:
            self._step = None  # gradients and wrapper are another pipeline's by now
            return
        if not self._is_begun:
            return
        has_run = self._has_run if self._step is None else self._step.window.has_run
        self.adapter.forget_window(is_complete=has_run)
        if self._step is not None and not self._step.window.close():
            self._cutter.take_back()
        else:
            self._tell_of(sys.exc_info()[1])
            self.parts.sync.abandon()
        self._is_begun = False
        self._restart()

    def leave(self) -> None:
        """Drop the open window on all ranks, though only this one has a reason to. Waits for the others, whose `step()`
        raises `UsageError` and says that another rank has left; all go on with the next window.

        Raises:
            UnsupportedError: the other ranks wait for this one's backward, and would not get as far as their step.
            UsageError: there is no window.
        """
        step = self._open_step("leave")
        if self.plan.is_empty or self.adapter.every_rank_runs or self.parts.sync.commits_in_backward:
            raise UnsupportedError(
                "leave() reaches the other ranks at their step(), but under this plan and wrapper they wait in their "
                "backward for that of this rank; finish the window with pipe.skip(loss) for what is to be left out."
            )
        if not step.window.batches.is_counted:
            raise UnsupportedError('leave() needs a window that was fetched as a whole, fetch="window".')
        step.tell(cause(sys.exc_info()[1]) or "it has called pipe.leave()")
        self._restart()

    def _tell_of(self, error: BaseException | None) -> None:
        """Tell ranks that wait at the step of the open window what has happened here."""
        if self._step is not None and not isinstance(error, CommunicationError):
            with suppress(CommunicationError):
                self._step.tell(cause(error) or "it has called pipe.abandon()")

    def _wait_for_total(self, window: Window[Any]) -> Mapping[str, float]:
        """N for each loss. If a rank failed while fetching, no rank has this window."""
        try:
            return window.wait_for_total()
        except WindowLeftError:
            raise
        except Exception:
            if window.begun_everywhere():
                self.adapter.forget_window()
            self._cutter.take_back()
            self._restart()
            raise

    @contextmanager
    def _telling(self, window: Window[Any]) -> Iterator[None]:
        """Tell the other ranks what is raised within, where they do not wait in a backward."""
        try:
            yield
        except Exception as error:
            if self._step is not None and not self.adapter.every_rank_runs and window.close():
                self._tell_of(error)
            raise
