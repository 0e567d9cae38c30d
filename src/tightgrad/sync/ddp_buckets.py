"""Reduction while the last micro-batch's backward goes on."""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.futures import Future

from tightgrad.adapters.ddp_hook import Bucket, BucketHandOver, completed
from tightgrad.adapters.worker import FifoWorker
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import Observe
from tightgrad.core.types import State
from tightgrad.plan.plan import Plan
from tightgrad.sync.bucket_reduction import BucketReduction
from tightgrad.sync.lockstep import Notice, Round, agree
from tightgrad.sync.outcome import Outcome


class OverlappedReduction:
    """Takes buckets from the adapter's hook and reduces them in one thread; `finish` waits for it."""

    def __init__(self, hand_over: BucketHandOver, plan: Plan, seed: int, clock: StageClock) -> None:
        assert plan.compress is not None
        assert plan.guard is not None
        self._hand_over = hand_over
        self._worker = FifoWorker(hand_over.device)
        self._reduction = BucketReduction(
            hand_over.background,
            plan.compress,
            seed,
            clock,
            on_nonfinite=plan.guard.on_nonfinite,
            votes_on_use=hand_over.votes_on_use,
        )
        self._receives = False
        self._idle = False
        self._seen: set[str] = set()
        self._error: BaseException | None = None
        hand_over.hook.serve(self._receive)

    def open(
        self, slots: State, step: int, factor: float, *, idle: bool = False, observe: Observe | None = None
    ) -> None:
        """Begin the last backward of a window.

        Args:
            slots: what the methods remember.
            step: number of applied steps.
            factor: gradients are multiplied by it.
            idle: nothing will be delivered, since nothing in the window counts.
            observe: is told what was to be sent and what of it was.
        """
        self._worker.join()
        self._reduction.open(slots, step, factor, observe)
        self._hand_over.hook.begin()
        self._seen.clear()
        self._error = None
        self._idle = idle
        self._receives = True

    def _receive(self, bucket: Bucket) -> "Future[Tensor]":
        if not self._receives:
            raise UsageError(
                "the backward of the DistributedDataParallel module ran outside of a window; run it inside `for batch "
                "in window:`, or under no_sync()."
            )
        if not self._idle:
            notice = Notice.REPEATED if self._seen & bucket.grads.keys() else Notice.NOTHING
            self._seen.update(bucket.grads)
            self._submit(partial(self._reduction.reduce, bucket.grads, bucket.used, notice))
        return completed(bucket.buffer)

    def _submit(self, task: Callable[[], object]) -> None:
        """In the thread; after an error nothing more is done, as on the other ranks."""

        def run() -> None:
            if self._error is None:
                try:
                    task()
                except BaseException as error:
                    self._error = error

        self._worker.submit(run)

    def finish(self) -> Outcome:
        """Wait for the last bucket. Collective: every rank must call it.

        Raises:
            UsageError: on every rank, when gradients came twice or not at all on any, or grew after they had come.
            RankMismatchError: on every rank, when they were not at the same place.
        """
        names = tuple(self._hand_over.parameters)
        missing = [name for name in names if name not in self._seen]
        if missing:  # one without a gradient holds up the buckets after its own
            missing = [name for name in missing if self._hand_over.parameters[name].grad is None] or missing
        self._submit(partial(self._reduction.end, names, missing, sorted(self._hand_over.hook.late)))
        self._worker.join()
        self._receives = False
        if self._error is not None:
            raise self._error
        reduced = self._reduction
        totals = {name: reduced.totals[name] for name in names if name in reduced.totals} if reduced.finite else {}
        return Outcome(totals, reduced.slots, reduced.finite, tuple(reduced.failures), meter=reduced.meter)

    def drop(self) -> None:
        """Wait for what is under way, and forget it."""
        self._worker.join()
        self._receives = False

    def abandon(self) -> None:
        """Drop the window. Collective: every rank must call it, whether it failed or not."""
        if self._receives and not self._idle:
            self._submit(partial(agree, Round.ABANDON, (), Notice.NOTHING, self._hand_over.background))
        self.drop()
