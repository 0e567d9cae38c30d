"""The gradient path, in order: accumulate, guard, reduce, clip, step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from tightgrad.accumulate import Accumulate, DefaultWeight, Window
from tightgrad.accumulate.buffer import GradientBuffer
from tightgrad.accumulate.count import WindowLeftError
from tightgrad.accumulate.fetched import NO_WINDOW, uncounted
from tightgrad.accumulate.oom import SmallerMicroBatches
from tightgrad.accumulate.weights import Weight, one
from tightgrad.accumulate.windows import WindowCutter
from tightgrad.checkpoint.folder import save_state
from tightgrad.checkpoint.loading import load_matching
from tightgrad.checkpoint.open_window import OpenWindow
from tightgrad.checkpoint.state import PipelineState
from tightgrad.clip.cached_norm import CachedNorm
from tightgrad.clip.fold import folding
from tightgrad.clip.norm import exact_norm
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Adapter
from tightgrad.core.types import Clipped, State
from tightgrad.pipeline.backward import run_backward
from tightgrad.pipeline.loss_meter import LossMeter
from tightgrad.pipeline.losses import checked_losses
from tightgrad.pipeline.noise_meter import NoiseMeter
from tightgrad.pipeline.normalisation import Normalisation
from tightgrad.pipeline.optimizer_step import OptimizerStep
from tightgrad.pipeline.ownership import Ownership
from tightgrad.pipeline.path import NOTHING_CLIPPED, GradientPath, SkipReason, Update
from tightgrad.pipeline.premises import Premises
from tightgrad.pipeline.recorder import Recorder
from tightgrad.pipeline.worst import worst
from tightgrad.plan.loss_scaling import LossScaling
from tightgrad.plan.plan import Plan
from tightgrad.records import RecordWriter
from tightgrad.records.step_record import StepRecord

Batch = TypeVar("Batch")


class GradientPipeline:
    """Runs a plan on an adapter; made by `tightgrad.attach`.

    Every rank must call `windows`, `backward` and `step` in the same order. Until a window's `step` nobody else may
    change `parameter.grad`, and until `close` nobody else may step the optimizer, except under an empty plan.
    """

    def __init__(
        self,
        adapter: Adapter,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        *,
        weight: Weight | None,
        seed: int,
        premises: Premises,
        scheduler: LRScheduler | None = None,
        records: Sequence[RecordWriter] = (),
        scaling: LossScaling | None = None,
    ) -> None:
        self.adapter, self.optimizer, self.plan = adapter, optimizer, plan
        self._scaling, self._premises = scaling, premises
        self._loss_scale: float | None = None
        self.state = PipelineState(adapter.remembered_shapes)
        self._accumulate = plan.accumulate or Accumulate()
        self._cutter: WindowCutter[Any] = WindowCutter(
            self._accumulate,
            weight or (DefaultWeight() if plan.accumulate else one),
            adapter.collective,
            adapter.micro_batch,
            "repeat" if adapter.every_rank_runs else "fewer",
            lambda: adapter.waits_in_forward,
        )
        self._window: Window[Any] | None = None
        self._retries = 0
        self._smaller = SmallerMicroBatches(adapter.collective, self._cutter.weigh)
        self._buffer = GradientBuffer(adapter.parameters)
        self._normalisation = Normalisation(self._accumulate, adapter, self._buffer)
        self._clock = StageClock()
        self._norm = CachedNorm(exact_norm)
        self._path = GradientPath(
            adapter, plan, seed, self._clock, self._norm, fold=folding(plan.clip, optimizer), scaling=scaling
        )
        self._noise = NoiseMeter(plan.noise_scale, adapter.collective) if plan.noise_scale else None
        self.ownership = Ownership(adapter, optimizer, watches=not plan.is_empty)
        self._optimizer_step = OptimizerStep(optimizer, scheduler, self._buffer, self._clock, self.ownership, scaling)
        self._recorder = Recorder(adapter, plan, self._path, self._clock, records)
        self._losses = LossMeter(self._accumulate.losses[0], is_mean=self._accumulate.loss_reduction == "mean")

    def windows(self, loader: Iterable[Batch]) -> Iterator[Window[Batch]]:
        """Cut `loader` into windows, one for each optimizer step.

        Collective: every rank must iterate. When one rank's loader ends first, its later windows are empty, and its
        part of the gradient is zero.

        Raises:
            UsageError: the previous window's `step` is missing, or the optimizer has parameters that the model had not
                when it was attached.
        """
        windows: Iterator[Window[Batch]] = (
            map(uncounted, loader) if self.plan.is_empty else self._cutter.cut(loader, lambda: self.state.step)
        )
        while True:
            self._check_no_open_window()
            window = next(windows, None)
            if window is None:
                return
            self._loss_scale = self._scaling.current(self.state.slots) if self._scaling is not None else None
            if self.state.open_window is not None:
                self._reopen(window, self.state.open_window)
            elif not self.plan.is_empty:
                self._premises.look_again()
                self._discard()
                self.adapter.begin_window()
            self._path.open(self.state, self._loss_scale, idle=window.counts_for_nothing)
            self._window = window
            self.ownership.leave_grads()
            yield window

    def _open_window(self, method: str) -> Window[Any]:
        self.ownership.check()
        if self._window is None:
            raise UsageError(f"{method}() needs a window; call it inside `for window in pipe.windows(loader):`.")
        return self._window

    def _check_no_open_window(self) -> None:
        self.ownership.check()
        if self._window is not None:
            raise UsageError(
                "the previous window has no step(); call pipe.step() once after `for batch in window:`, or "
                "pipe.abandon() to drop it after an error."
            )

    def abandon(self) -> None:
        """Drop the open window and its gradients, after an error in the loop; nothing else changes.

        Collective: every rank must call it, also one whose `backward` or `step` has raised. The batches that were
        fetched are gone, with `fetch="batch"` perhaps not as many on each rank.
        """
        if not self.ownership.is_held:
            self._window = None  # gradients and wrapper are another pipeline's by now
            return
        self.adapter.leave_window()
        if self._window is not None and not self._window.close():
            self._take_back()
            return
        self._path.abandon()
        self._discard()

    def _total_weights(self, window: Window[Any]) -> Mapping[str, float]:
        """N for each loss. If a rank failed while fetching, no rank has this window."""
        try:
            return window.wait_for_total()
        except WindowLeftError:
            raise
        except Exception:
            if window.begun_everywhere():
                self.adapter.leave_window()
            self._take_back()
            raise

    def _take_back(self) -> None:
        self._cutter.take_back()
        self._discard()

    def _reopen(self, window: Window[Any], saved: OpenWindow) -> None:
        """Go on in the middle of the window that a checkpoint was taken in."""
        saved.check_is(window, self._loss_scale)
        self.adapter.restore_accumulated(dict(saved.grads))
        self._buffer.restore(saved.sums)
        self._normalisation.totals = saved.total_weights
        window.start_at(saved.position)
        self.state.open_window = None

    def backward(self, loss: Tensor | Mapping[str, Tensor]) -> None:
        """Scale the current micro-batch's loss so that gradients add up to the target, and run its backward.

        Args:
            loss: a scalar, reduced as the plan's `loss_reduction` says; with several `losses` in the plan, a mapping
                of one scalar for each.

        Raises:
            UsageError: there is no current micro-batch, a loss is not a scalar, or one is missing; gradients were
                changed from outside since the window began; or another rank failed while fetching this window, which
                the other ranks then do not have either.
            Exception: with `fetch="batch"`, what this rank's loader raised since the window began, once all know.
        """
        window = self._open_window("backward")
        losses = checked_losses(loss, self._accumulate.losses)
        self.ownership.take_grads()
        weights = window.take_weights()
        with self._clock("backward"), window.during_backward():
            if self.plan.is_empty:
                run_backward(next(iter(losses.values())), weights, self.adapter, None)
                return
            scaled = self._scaled(losses, weights, window)
            del loss, losses  # a loop by hand does not hold them during their backward either
            run_backward(scaled, weights, self.adapter, self._noise)
        self._absorb()

    def _scaled(self, losses: Mapping[str, Tensor], weights: Mapping[str, float], window: Window[Any]) -> Tensor | None:
        self._losses.saw(losses, weights)
        return self._normalisation.loss(losses, weights, lambda: self._total_weights(window), self._loss_scale)

    def _absorb(self) -> None:
        if self._buffer.absorbs and not self.adapter.holds_back:
            with self._clock("accumulate"):
                self._buffer.absorb()
        self.ownership.leave_grads()

    def run(self, window: Window[Batch], loss_of: Callable[[Batch], Tensor | Mapping[str, Tensor]]) -> StepRecord:
        """Run forward, backward and step of a whole window; with `on_oom="split"`, again with smaller micro-batches
        when any rank runs out of memory.

        Collective: every rank must call it. A window that was run again has the same gradient only for a loss that is a
        weighted mean of per-sample terms (docs/premises.md), which is checked before the first split.

        Args:
            window: from `windows`, not iterated.
            loss_of: gives a batch's loss, as `backward` takes it.

        Raises:
            OutOfMemoryError: on every rank, when micro-batches of one sample are too large on any.
            UnsupportedError: on every rank, when the loss of a piece is not that of its halves on any.
        """
        if self._accumulate.on_oom == "raise":
            for batch in window:
                self.backward(loss_of(batch))
            return self.step()

        def backward(piece: Batch, weights: Mapping[str, float]) -> None:
            with self.adapter.micro_batch(0, 1):
                losses = checked_losses(loss_of(piece), self._accumulate.losses)
                self.ownership.take_grads()
                with self._clock("backward"):
                    run_backward(self._scaled(losses, weights, window), weights, self.adapter, self._noise)
                self._absorb()

        self._total_weights(window)
        self._retries = self._smaller.run(
            window, backward, lambda: self._discard(window), self._premises.on_split(window, loss_of)
        )
        window.backwards = len(window)
        return self.step()

    def _discard(self, still_open: Window[Any] | None = None) -> None:
        self._window = still_open
        self.ownership.forget_grads()
        self._path.drop()
        self.adapter.restore_accumulated({})
        self._buffer.clear()
        self._norm.clear()
        self._losses.clear()
        self._normalisation.totals = None
        if self._noise is not None:
            self._noise.clear()

    def step(self) -> StepRecord:
        """Finish the window: guard, reduce, clip, optimizer step, and clear the gradients.

        Collective: every rank must call it.

        Raises:
            UsageError: there is no window, a micro-batch's backward is missing, or gradients were changed from outside.
            NonFiniteGradientError: inf or NaN, under the policy "raise" or after too many skips in a row.
        """
        window = self._open_window("step")
        window.check_complete()
        self.ownership.take_grads(None if window.counts_for_nothing else self._path.fail)
        if not self.plan.is_empty:
            self._premises.look_again()
            self._normalisation.follow(self._total_weights(window))
        loss = self._losses.take()
        retries, self._retries = self._retries, 0
        try:
            outcome = self._apply(window)
        except Exception as error:
            self._recorder.failed(error)
            raise
        finally:
            self._discard()
        noise = self._noise.value(self.state.slots) if self._noise else None
        return self._recorder.record(
            window, outcome, self.state, loss=loss, loss_scale=self._loss_scale, retries=retries, noise_scale=noise
        )

    def flush(self) -> StepRecord:
        """Deliver what compression has left behind on all ranks: one optimizer step on the sum of all residuals, which
        are empty afterwards. Collective: every rank must call it, between two windows.

        Before the plan or the wrapper changes, or at the end of training. It is a step like others: clipped, counted,
        and followed by the scheduler's.

        Raises:
            UsageError: a window is open, or the plan keeps no residuals.
        """
        self._check_no_open_window()
        try:
            outcome = self._take(self._path.flush(self.state))
        finally:
            self._discard()
        return self._recorder.record(NO_WINDOW, outcome, self.state)

    def _take(self, update: Update | SkipReason, window: Window[Any] | None = None) -> Clipped | SkipReason:
        if isinstance(update, str):
            return update
        learned: State = {}
        if self._noise is not None and window is not None:
            factor = self.adapter.divisor * (self._loss_scale or 1.0)
            learned = self._noise.learned(window, update.clipped.total_norm, factor, update.slots)
        self._optimizer_step.take(update, self.state, learned)
        return update.clipped

    def _apply(self, window: Window[Any]) -> Clipped | SkipReason:
        if self.plan.is_empty:
            self._optimizer_step.take_as_they_are(self.state)
            return NOTHING_CLIPPED
        if window.counts_for_nothing:
            return "zero_weight"
        with self._clock("accumulate"):
            grads = self._buffer.grads()
        return self._take(self._path.walk(grads, self.state), window)

    def close(self) -> None:
        """Give model and optimizer back to loops without this pipeline, and close the writers of records. Afterwards
        the pipeline can still be saved, and no longer be trained with. With a window open, call `abandon` first.
        """
        self._recorder.close()
        if self._window is not None and self.ownership.is_held:
            self._discard()
        self._window = None
        self.ownership.release()

    def worst(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the parameters with the largest gradients so far in this window, those with inf or NaN first.

        To be called before `step`. Collective when gradients are sharded: every rank must call it.

        Returns:
            Names and 2-norms of this rank's gradients, scaled as their losses were.
        """
        return worst(self._buffer.grads(), count)

    def state_dict(self) -> dict[str, Any]:
        """Return everything this rank remembers, also in mid-window: plain tensors and numbers. Differs by rank."""
        open_window = None
        if self._window is not None:
            self.ownership.check_grads()
            totals = self._normalisation.totals or self._window.expected_weights
            grads, sums = self.adapter.accumulated(), self._buffer.sums()
            open_window = OpenWindow.of(self._window, totals, grads, sums, self._loss_scale)
        consumed = self._cutter.num_consumed if self._window is None else self._cutter.num_consumed_before
        return self.state.state_dict(open_window, consumed)

    def save(self, folder: str | Path) -> Path:
        """Write every rank's state below `folder`, which all ranks share. Collective: every rank must call it.

        Model and optimizer are not included. Returns the new checkpoint's own folder, which no other save writes to.

        Raises:
            CheckpointError: on every rank, if any has no state to save or could not write it; the checkpoint before
                stays in force. Where there is none to save, the reason itself.
        """
        return save_state(self.state_dict, Path(folder), self.adapter.collective)

    def load(self, folder: str | Path) -> int:
        """Restore the newest complete checkpoint below `folder`; return its `num_consumed`. Collective: every rank
        must call it.

        On another number of ranks than saved, residuals are handed over so that their sum is preserved.

        Raises:
            CheckpointError: on every rank, if any rank's file is missing or damaged, or there is none; nothing changed.
            StateMismatchError: the same, where the state does not fit this rank's plan and model.
        """
        state = load_matching(Path(folder), self.plan.slots, self.adapter)
        self.load_state_dict(state)
        return int(state["num_consumed"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            StateMismatchError: the state is of another version, or does not fit this plan and model.
        """
        self.ownership.check()
        self.state.load_state_dict(state, self.adapter.parameters, self.plan.slots)
        self.adapter.leave_window()
        self._cutter.num_consumed = int(state["num_consumed"])
        self._discard()
