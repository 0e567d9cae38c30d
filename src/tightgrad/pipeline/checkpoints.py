"""What a pipeline saves and takes up again, also in the middle of a window; and how a window ends without a step."""

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Self

from tightgrad.accumulate import Window
from tightgrad.accumulate.count import WindowLeftError
from tightgrad.accumulate.windows import NEEDS_WINDOW, WindowCutter
from tightgrad.adapters.plain import Adapter
from tightgrad.checkpoint.folder import check_same_ranks, load_on_every_rank, save_state
from tightgrad.checkpoint.open_window import OpenWindow
from tightgrad.checkpoint.save_folder import Newest
from tightgrad.checkpoint.state import PipelineState
from tightgrad.core.collective import cause
from tightgrad.core.errors import CommunicationError, ConfigError, StateMismatchError, UnsupportedError, UsageError
from tightgrad.pipeline.left_out import LeftOut
from tightgrad.pipeline.parts import Parts
from tightgrad.pipeline.premises.ownership import Ownership
from tightgrad.pipeline.recorder import Recorder
from tightgrad.pipeline.resumed import Resumed
from tightgrad.pipeline.step import Step
from tightgrad.pipeline.whole_window import WholeWindows
from tightgrad.plan.plan import Plan


class Checkpoints:
    """Saves and restores a pipeline; its methods are those of `GradientPipeline`."""

    adapter: Adapter
    plan: Plan
    parts: Parts
    state: PipelineState
    ownership: Ownership
    _cutter: WindowCutter[Any]
    _step: Step | None
    _recorder: Recorder
    _resumed: Resumed | None = None
    under_way: Callable[[], object] | None = None

    def __deepcopy__(self, memo: object) -> Self:
        """Return the pipeline itself: a copied module that holds it has no gradients of its own in it."""
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raise `UsageError`: hooks, process groups and the model are not the pipeline's to write."""
        raise UsageError(
            "a pipeline cannot be pickled; save it with pipe.save(folder) or tg.save(folder, model, optimizer, pipe), "
            "and attach() again where it is loaded. If it is an attribute of something that is pickled, keep it "
            "outside of that."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return everything this rank remembers, also in mid-window: plain tensors and numbers. Differs by rank.

        Raises:
            UsageError: a backward or a step is under way, or was cut short; or gradients were changed from outside.
        """
        step = self._step
        if step is None:
            return self.state.state_dict(None, self._cutter.num_consumed)
        step.window.check_can_be_saved()
        self.ownership.check_grads()
        totals = step.loss.totals or step.window.expected_weights
        grads, sums = self.adapter.accumulated(), self.parts.buffer.sums()
        open_window = OpenWindow.of(step.window, totals, grads, sums, step.loss.loss_scale, step.left_out.weights)
        return self.state.state_dict(open_window, self._cutter.num_consumed_before)

    def save(self, folder: str | Path) -> Path:
        """Write every rank's state below `folder`, which all ranks share. Collective: every rank must call it.

        Model and optimizer are not included. Returns the new checkpoint's own folder, which no other save writes to.

        Raises:
            CheckpointError: on every rank, if any has no state to save or could not write it; the checkpoint before
                stays in force. Where there is none to save, the reason itself.
        """
        self.wait_for_save()
        return save_state(self.state_dict, Path(folder), self.adapter.collective)

    def wait_for_save(self) -> None:
        """Wait until what `tg.save_async` writes is on the disk; raise what went wrong, once."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            under_way()

    def load(self, folder: str | Path) -> int:
        """Restore the newest complete checkpoint below `folder`; return its `num_consumed`. Collective: every rank
        must call it.

        On another number of ranks than saved, residuals are handed over so that their sum is preserved.

        Raises:
            CheckpointError: on every rank, if any rank's file is missing or damaged, or there is none; nothing changed.
            StateMismatchError: the same, where the state does not fit this rank's plan and model.
        """
        state = self._read(Path(folder), lambda state, found: None)
        self.load_state_dict(state)
        return int(state["num_consumed"])

    def _read(self, folder: Path, check_more: Callable[[Mapping[str, Any], Newest], None]) -> dict[str, Any]:
        """Read and check what `load` restores, and change nothing. Collective: every rank must call it."""
        slots, shapes = self.plan.slots, self.adapter.remembered_shapes

        def check(state: Mapping[str, Any], found: Newest) -> None:
            by_rank = [name for name, slot in slots.items() if slot.across_ranks == "sum" and state["slots"].get(name)]
            if shapes is not None and by_rank:
                check_same_ranks(folder, found.world_size, self.adapter.collective.world_size)
            self._check_micro_batches(state)
            check_more(state, found)  # first: a model that has changed is named as such, and not by its residuals
            PipelineState(shapes).load_state_dict(state, self.adapter.parameters, slots)

        return load_on_every_rank(folder, slots, self.adapter.collective, check)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            StateMismatchError: the state is of another version, or does not fit this plan and model.
        """
        self.ownership.check()
        self._check_micro_batches(state)
        self.state.load_state_dict(state, self.adapter.parameters, self.plan.slots)
        self.adapter.forget_window()
        self._cutter.num_consumed = int(state["num_consumed"])
        self._cutter.set_micro_batches(self.state.micro_batches)
        self._restart()

    def _check_micro_batches(self, state: Mapping[str, Any]) -> None:
        """Raise `StateMismatchError` where this plan cannot make the windows that were set when it was saved."""
        try:
            self._cutter.check_micro_batches(state.get("micro_batches"))
        except ConfigError as error:
            raise StateMismatchError(f"micro_batches of a pipeline state is not one for this plan: {error}") from None

    def resumable(self) -> Resumed:
        """Return what a run that goes on exactly needs beside `state_dict`, on this rank."""
        return Resumed.of(self._recorder.clip_rate, self._step, self._recorder.sent.peek())

    def resume(self, resumed: Resumed) -> None:
        """Restore what `resumable` gave: now, and once more when the next window begins. Until then, a loader that
        starts anew draws a seed that the run before drew long ago.
        """
        resumed.rng.restore()
        self._recorder.clip_rate.load_state_dict(resumed.clip_rate)
        self.count_sent(resumed.sent_nbytes)
        self._resumed = resumed

    def count_sent(self, nbytes: int) -> None:
        """Let the next record count so many bytes so far, and none of what a checkpoint has taken."""
        self._recorder.sent.go_on(nbytes)

    @property
    def is_between_windows(self) -> bool:
        """Tell whether no batch was fetched whose window has not had its step."""
        return self._step is None and not self._cutter.carried

    def _reopen(self, step: Step, saved: OpenWindow, resumed: Resumed | None) -> None:
        """Go on in the middle of the window that a checkpoint was taken in."""
        saved.check_is(step.window, step.loss.loss_scale)
        self.adapter.restore_accumulated(dict(saved.grads))
        self.parts.buffer.restore(saved.sums)
        step.loss.totals = saved.total_weights
        step.left_out = LeftOut(saved.left_out)
        step.window.backwards = saved.position  # whose gradients come from the checkpoint
        self.state.open_window = None
        if resumed is not None:
            resumed.reopen(step)
            self.count_sent(resumed.sent_nbytes)

    def _restart(self) -> None:
        """Forget the open window and its gradients."""
        self._step = None
        self.parts.restart()


class Leaving(Checkpoints):
    """Drops windows; its methods are those of `GradientPipeline`."""

    _is_begun = False
    """Whether there may be something to forget: a window was asked for, and its step was not applied."""
    _has_run = False
    """Whether a step was begun in the window, after its last backward."""
    _failed: Step | None = None
    """What has raised in its step: in a closure's pass, the step of that, in which other ranks may wait."""
    _whole: WholeWindows

    def _open_step(self, method: str) -> Step:
        self.ownership.check()
        if self._step is None:
            raise UsageError(f"{method}() {NEEDS_WINDOW}")
        return self._step

    def abandon(self) -> None:
        """Drop the open window and its gradients, after an error in the loop; nothing else changes.

        Collective: every rank must call it, also one whose `backward` or `step` has raised, or come to its `step`,
        which then raises `UsageError` and names this rank and the error that is being handled here. Where ranks wait in
        a backward for that of this one (a wrapper that sums by itself, `overlap="backward"`), or in a collective of the
        loss's own, they wait on: end the process, so that they stop. The batches that were fetched are gone, with
        `fetch="batch"` perhaps not as many on each rank.
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
        self._is_begun, self._failed = False, None
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
                "backward for that of this rank; finish the window with pipe.skip(loss) for each micro-batch left out."
            )
        if not step.window.batches.is_counted:
            raise UnsupportedError('leave() needs a window that was fetched as a whole, fetch="window".')
        step.tell(cause(sys.exc_info()[1]) or "it has called pipe.leave()")
        self._restart()

    def _tell_of(self, error: BaseException | None) -> None:
        """Tell ranks that wait at the step of the open window what has happened here."""
        step, why = self._step or self._failed, cause(error) or "it has called pipe.abandon()"
        if step is not None and not isinstance(error, CommunicationError):
            with suppress(CommunicationError):
                if not self.adapter.every_rank_runs:
                    self._whole.smaller.fail(step.window, why)
                step.tell(why)

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
