"""What `attach` gives: windows, errors, checkpoints, ownership. The way of a gradient itself is in `step.py`."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from tightgrad.accumulate import DefaultWeight, Window
from tightgrad.accumulate.fetched import NO_WINDOW
from tightgrad.accumulate.losses import checked_losses
from tightgrad.accumulate.oom import SmallerMicroBatches
from tightgrad.accumulate.weights import Weight, one
from tightgrad.accumulate.windows import WindowCutter, Windows
from tightgrad.core.errors import ConfigError, UsageError
from tightgrad.core.global_rng import GlobalRng
from tightgrad.core.types import State
from tightgrad.pipeline.checkpoints import Leaving
from tightgrad.pipeline.closure import Again, repeatable, repeating
from tightgrad.pipeline.left_out import check_can_skip
from tightgrad.pipeline.meters.worst import worst
from tightgrad.pipeline.parts import Parts
from tightgrad.pipeline.plain_step import PlainStep
from tightgrad.pipeline.premises.collaborators import check_will_step, check_without_closure, needs_closure
from tightgrad.pipeline.recorder import Recorder
from tightgrad.pipeline.step import Step
from tightgrad.pipeline.whole_window import WholeWindows
from tightgrad.plan.plan import Plan
from tightgrad.records import RecordWriter
from tightgrad.records.step_record import StepRecord

Batch = TypeVar("Batch")


class GradientPipeline(Leaving):
    """Runs a plan; made by `tightgrad.attach`. To be read: `plan`, `optimizers`, and `state.step`, the steps so far.

    Every rank must call `windows`, `backward` and `step` in the same order. Until a window's `step` nobody else may
    change `parameter.grad`, and until `close` nobody else may step the optimizer, except under an empty plan.
    """

    def __init__(self, parts: Parts, plan: Plan, weight: Weight | None, records: Sequence[RecordWriter]) -> None:
        self.parts, self.optimizers, self.plan = parts, tuple(parts.optimizer.optimizers), plan
        adapter = parts.adapter
        self.adapter, self.state, self.ownership = adapter, parts.state, parts.ownership
        is_alone = adapter.collective.world_size == 1 and not adapter.marks_last
        self._cutter: WindowCutter[Any] = WindowCutter(
            parts.plan.accumulate,
            weight or (DefaultWeight() if plan.accumulate else one),
            adapter.collective,
            adapter.micro_batch,
            plan.fetches_one_by_one(is_alone=is_alone and not any(map(needs_closure, self.optimizers))),
            "repeat" if adapter.every_rank_runs and not is_alone else "fewer",
            lambda: adapter.waits_in_forward,  # not self: the pipeline ends with its last reference
            parts.alike,
        )
        self._whole = WholeWindows(parts, SmallerMicroBatches(adapter.collective, self._cutter.weigh))
        self._recorder = Recorder(parts, plan, records)
        self._step: Step | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Return the only optimizer; with several, which are in `optimizers`, raise `UsageError`."""
        if len(self.optimizers) > 1:
            kinds = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers)
            raise UsageError(f"this pipeline has {len(self.optimizers)} optimizers ({kinds}); take pipe.optimizers.")
        return self.optimizers[0]

    def windows(self, loader: Iterable[Batch]) -> Windows[Batch]:
        """Cut `loader` into windows, one for each optimizer step.

        Collective: every rank must iterate. When one rank's loader ends first, its later windows are empty, and its
        part of the gradient is zero. Where the loader has a length, `len(pipe.windows(loader))` is the number of this
        rank's windows; `TypeError` where it has none, and where windows are filled by weight.

        Raises:
            UsageError: the previous window's `step` is missing, or the optimizer has parameters that the model had not
                when it was attached.
        """
        return Windows(self._each_window(loader), partial(self._cutter.num_windows, loader, self.state.step))

    def _each_window(self, loader: Iterable[Batch]) -> Generator[Window[Batch], None, None]:
        self._recorder.begin(partial(self._cutter.num_windows, loader, self.state.step))
        resumed, self._resumed = self._resumed, None
        batches = loader if resumed is None else resumed.begun(loader)
        cut = self._cutter.uncounted_each if self.plan.is_empty else self._cutter.cut
        windows = cut(batches, lambda: self.state.step)
        while True:
            self._check_no_open_window()
            self._is_begun, self._has_run, self._failed = True, False, None
            window = next(windows, None)
            if window is None:
                self._is_begun = False
                return
            self.parts.premises.compare_ranks(window)
            self.parts.premises.loss.on_window(window, self._cutter.weigh)
            step = self._new_step(window)
            if self.state.open_window is not None:
                self._reopen(step, self.state.open_window, resumed)
            else:
                step.begin()
            step.begin_sum()
            self._step, self._resumed = step, None  # a state that was loaded in this loop is taken up by now
            self.ownership.watch_grads()
            yield window

    def _new_step(self, window: Window[Any]) -> Step:
        return (PlainStep if self.plan.is_empty else Step)(self.parts, window, lambda: self._wait_for_total(window))

    def _check_no_open_window(self) -> None:
        self.ownership.check()
        if self._step is not None:
            raise UsageError(
                "the previous window has no step(); call pipe.step() once after `for batch in window:`, or "
                "pipe.abandon() to drop it after an error or a `break`. A pipeline has one window at a time."
            )

    def set_micro_batches(self, micro_batches: int) -> None:
        """Set how many micro-batches make a window, from the next window on, in place of the plan's number or schedule.

        For what the plan's schedule by steps cannot say, such as a number for each epoch. To be called between two
        windows, with the same number on every rank, else the next window is an error on all. It is saved, too.

        Raises:
            ConfigError: the plan does not accumulate, by number, or never had more than one micro-batch in a window.
            UsageError: a window is open.

        Examples:
            >>> import torch, tightgrad as tg
            >>> model = torch.nn.Linear(4, 1)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(micro_batches=8)))
            >>> steps = []
            >>> for epoch in range(2):
            ...     pipe.set_micro_batches(2 if epoch == 0 else 8)
            ...     for window in pipe.windows([torch.ones(3, 4)] * 8):
            ...         for batch in window:
            ...             pipe.backward(model(batch).square().mean())
            ...         steps.append(pipe.step().micro_batches)
            >>> steps
            [2, 2, 2, 2, 8]
        """
        self._check_no_open_window()
        if self.plan.accumulate is None:
            raise ConfigError(
                f"micro_batches cannot be set to {micro_batches}: the plan does not accumulate. Attach it with "
                f"Accumulate(micro_batches={micro_batches}), or the largest number that will be set."
            )
        self._cutter.set_micro_batches(micro_batches)
        self.state.micro_batches = micro_batches

    def backward(self, loss: Tensor | Mapping[str, Tensor], **options: object) -> None:
        """Scale the current micro-batch's loss so that gradients add up to the target, and run its backward.

        Args:
            loss: a scalar, reduced as the plan's `loss_reduction` says; with several `losses` in the plan, a mapping
                of one scalar for each.
            options: those of torch's backward, such as `retain_graph`, are refused with what to write.

        Raises:
            UsageError: there is no current micro-batch, a loss is not a scalar, or one is missing; gradients were
                changed from outside since the window began; or another rank failed while fetching this window, which
                the other ranks then do not have either.
            Exception: with `fetch="batch"`, what this rank's loader raised since the window began, once all know.
        """
        step = self._open_step("backward")
        losses = checked_losses(loss, self.parts.plan.accumulate.losses, options)
        del loss
        self.ownership.take_grads()
        weights = step.window.take_weights()
        with step.window.during_backward():
            step.backward(losses, weights)

    def skip(self, loss: Tensor | Mapping[str, Tensor] | None = None) -> None:
        """Take the current micro-batch out of its window, in place of `backward`: its weight leaves N, and nothing of
        its loss enters, not even NaN. The step is that of a window without it.

        Args:
            loss: of the micro-batch; needed under a wrapper that sums by itself, where other ranks wait for a backward.

        Raises:
            UnsupportedError: N could not be corrected here; the message says why.
            UsageError: as `backward` does, or the loss is needed.
        """
        step = self._open_step("skip")
        commits = self.parts.sync.commits_in_backward
        check_can_skip(self.parts.plan, self.adapter, commits_in_backward=commits, has_loss=loss is not None)
        losses = {} if loss is None else checked_losses(loss, self.parts.plan.accumulate.losses)
        self.ownership.take_grads()
        weights = step.window.take_weights()
        with step.window.during_backward():
            step.leave_out(losses if self.adapter.every_rank_runs else {}, weights)

    def run(self, window: Window[Batch], loss_of: Callable[[Batch], Tensor | Mapping[str, Tensor]]) -> StepRecord:
        """Run forward, backward and step of a whole window; with `on_oom="split"`, again with smaller micro-batches
        when any rank runs out of memory; for an optimizer whose step takes a closure (LBFGS, SAM), as often as it asks.

        Collective: every rank must call it. In a closure loss and gradient are the window's over all ranks, with guard
        and clip; forwards draw the same random numbers in each pass; the record has loss, norm and clip factor at the
        weights before the step. A step that is not admitted or raises leaves weights and the optimizer's state as they
        were, for which a copy of both is held during it.

        Micro-batches add up to the big batch's gradient only if losses are means of per-sample terms, which is checked
        once before batches are cut, by `source="split"` or after running out of memory (docs/premises.md).

        Args:
            window: from `windows`, not iterated.
            loss_of: gives a batch's loss, as `backward` takes it.

        Raises:
            OutOfMemoryError: on every rank, when micro-batches of one sample are too large on any.
            UnsupportedError: on every rank, when a batch is to be cut and its loss is not that of its halves on any.
        """
        self._open_step("run")
        self.parts.premises.loss.on_run(window, loss_of, self._cutter.weigh)
        is_tight = self.parts.plan.accumulate.on_oom == "split"  # no copy of weights for one that may not need it
        if not self.parts.optimizer.takes_closure(only_declared=is_tight):
            self._add_all(window, loss_of)
            return self._finish()
        start, loss_of = GlobalRng.now(), repeatable(loss_of, self.optimizers[0])
        self._add_all(window, loss_of)

        def again() -> tuple[Tensor, State]:
            with repeating(self.parts.premises.module, start):
                window.rewind()
                self._step = self._new_step(window)
                self._step.begin()
                self._step.begin_sum()
                self._add_all(window, loss_of)
                return self._step.evaluate()

        return self._finish(again)

    def _add_all(self, window: Window[Batch], loss_of: Callable[[Batch], Tensor | Mapping[str, Tensor]]) -> None:
        """Run forward and backward of all micro-batches, in smaller pieces where the plan wants that."""
        if self.parts.plan.accumulate.on_oom == "raise":
            for batch in window:
                self.backward(loss_of(batch))
            return
        self._wait_for_total(window)
        self._whole.in_pieces(window, loss_of, self._open_step("run"), lambda: self._renewed(window))

    def _renewed(self, window: Window[Any]) -> Step:
        """Take the window up anew: what was gathered is forgotten."""
        self.parts.restart()
        self._step = self._new_step(window)
        self._step.begin_sum()
        return self._step

    def run_cached(
        self,
        window: Window[Batch],
        encode: Callable[[Batch], Any],
        loss: Callable[[Any], Tensor | Mapping[str, Tensor]],
        *,
        sees: str = "all_ranks",
    ) -> StepRecord:
        """Run a whole window whose loss compares its samples with one another, with the gradient of one big batch.

        Every micro-batch is encoded twice: without a graph, and, once the gradient of the loss is known, with one and
        with the same random numbers (docs/contrastive.md). Collective: every rank must call it.

        Args:
            window: from `windows`, not iterated.
            encode: gives a batch's representations: tensors with one row a sample, each of which depends on no other
                sample, in any tuples, lists and dictionaries; and scalars that all micro-batches share.
            loss: is given the same with the rows of all samples, and returns a scalar as `backward` takes it.
            sees: whose rows `loss` is given: of "all_ranks", so that each rank computes the loss of the big batch; or
                of its "own_rank", whose loss counts by its weight and may look at others' by `tg.gather_with_grad`.

        Raises:
            UnsupportedError: representations depend on other samples, or the plan cannot be run so.
            UsageError: representations are not what is asked for, or the second pass gave others.

        Examples:
            >>> import torch, tightgrad as tg
            >>> model = torch.nn.Linear(8, 4)
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(micro_batches=4)))
            >>> infonce = lambda z: torch.nn.functional.cross_entropy(z[0] @ z[1].T, torch.arange(len(z[0])))
            >>> for window in pipe.windows([(torch.randn(8, 8), torch.randn(8, 8))] * 4):
            ...     record = pipe.run_cached(window, lambda batch: (model(batch[0]), model(batch[1])), infonce)
            >>> record.micro_batches, record.weight
            (4, 32.0)
        """
        check_without_closure(self.optimizers, "run_cached() gives it one gradient a window; take another optimizer.")
        self._whole.cached(window, encode, loss, self._open_step("run_cached"), sees)
        return self.step()

    def step(self) -> StepRecord:
        """Finish the window: guard, reduce, clip, optimizer step, and clear the gradients.

        Collective: every rank must call it.

        Raises:
            UsageError: there is no window, a micro-batch's backward is missing, or gradients were changed from outside.
            NonFiniteGradientError: inf or NaN, under the policy "raise" or after too many skips in a row.
        """
        check_without_closure(self.optimizers)
        return self._finish()

    def _finish(self, again: Again | None = None) -> StepRecord:
        """Step, with a closure that runs the window `again` or without one."""
        step = self._open_step("step")
        check_will_step(self.optimizers)
        step.complete()
        self._has_run = True
        try:
            with step.window.during("pipe.step()"):
                outcome = step.apply(again)
            self._is_begun = False
            self.parts.premises.model.end_window()
        except Exception as error:  # an interrupt leaves the window open, as it does in backward()
            self._failed = self._step
            self._restart()
            self._recorder.failed(error)
            raise
        self._restart()
        return self._recorder.record(step, outcome)

    def flush(self) -> StepRecord:
        """Deliver what compression has left behind on all ranks: one optimizer step on the sum of all residuals, which
        are empty afterwards. Collective: every rank must call it, between two windows.

        Before plan or wrapper change, or at the end of training. It is a step like others: clipped, counted, scheduled.

        Raises:
            UsageError: a window is open, or the plan keeps no residuals.
        """
        self._check_no_open_window()
        step = self._new_step(NO_WINDOW)
        try:
            outcome = step.flush()
        finally:
            self._restart()
        return self._recorder.record(step, outcome)

    def close(self) -> None:
        """Give model and optimizer back, and close the writers of records; with a window open, call `abandon` first.

        The pipeline can still be saved, and no longer be trained with.
        """
        self._recorder.close()
        if self._step is not None and self.ownership.is_held:
            self._restart()
        self._step = None
        self.ownership.release()

    def worst(self, count: int = 5) -> list[tuple[str, float]]:
        """Return names and 2-norms of this rank's largest gradients, NaN first. Collective if they are sharded."""
        return worst(self.parts.buffer.grads(), count)
