"""The sum over ranks while the last micro-batch's backward goes on, bucket by bucket."""

from dataclasses import replace
from functools import partial

from torch import Tensor
from torch.futures import Future

from tightgrad.adapters.ddp_hook import Bucket, BucketHandOver, completed
from tightgrad.adapters.plain import Adapter
from tightgrad.adapters.worker import FifoWorker
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import UsageError
from tightgrad.core.protocols import GradNorm
from tightgrad.core.types import Grads
from tightgrad.plan.plan import Resolved
from tightgrad.sync.after_backward import AfterBackward
from tightgrad.sync.bucket_reduction import BucketReduction
from tightgrad.sync.compressed import in_layout
from tightgrad.sync.protocol import Summed, WindowFacts
from tightgrad.sync.same_round import Notice, Round, agree


class DDPBuckets(AfterBackward):
    """Takes buckets from the adapter's hook and sums them in one thread, for which `sum` waits.

    Where compression leaves out too much of a step, its gradients, which the buckets have left as they were, are summed
    densely after backward.
    """

    commits_in_backward = True

    def __init__(
        self, adapter: Adapter, hand_over: BucketHandOver, plan: Resolved, seed: int, clock: StageClock
    ) -> None:
        super().__init__(adapter, plan, seed, clock)
        self._hand_over = hand_over
        self._worker = FifoWorker(hand_over.device)
        self._receives = False
        self._seen: set[str] = set()

    def connect(self) -> None:
        """Make a group for the thread, and take buckets from now on. Collective: every rank must call it."""
        self._hand_over.connect()
        self._hand_over.hook.serve(self._receive)

    def begin(self, facts: WindowFacts) -> None:
        """Begin a window, before its first forward."""
        super().begin(facts)
        self._worker.join()
        self._reduction = BucketReduction(
            self._plan.compress,
            facts,
            facts.context(self._hand_over.background, self._seed, self._clock),
            on_nonfinite=self._plan.guard.on_nonfinite,
            votes_on_use=self._hand_over.votes_on_use,
        )
        self._hand_over.hook.begin()
        self._seen.clear()
        self._receives = True

    def _receive(self, bucket: Bucket) -> "Future[Tensor]":
        if not self._receives:
            raise UsageError(
                "the backward of the DistributedDataParallel module ran outside of a window; run it inside `for batch "
                "in window:`, or under no_sync()."
            )
        if not self._facts.idle:
            notice = Notice.REPEATED if self._seen & bucket.grads.keys() else Notice.NOTHING
            self._seen.update(bucket.grads)
            self._worker.submit(partial(self._reduction.reduce, bucket.grads, bucket.used, notice))
        return completed(bucket.buffer)

    def sum(self, grads: Grads, norm: GradNorm) -> Summed:
        """Wait for the last bucket, and return the sums. Collective: every rank must call it, or `fail`."""
        with self._clock("wait"):
            self._finish()
        reduced = self._reduction
        if not reduced.finite:
            return Summed(grads, reduced.slots, finite=False)
        error = None
        bound = self._plan.compress.max_relative_error
        if reduced.meter is not None and bound is not None:
            error = reduced.meter.agreed(self._adapter.collective).relative_error
            if error > bound:
                return replace(self._summed(grads, norm, self._densely), relative_error=error, fell_back=True)
        totals = {
            name: in_layout(reduced.totals[name], parameter, reduced.totals[name].dtype)
            for name, parameter in self._adapter.parameters.items()
            if name in reduced.totals
        }
        self._check_same_sum(totals, reduced.failures, norm)
        return Summed(totals, reduced.slots, relative_error=error)

    def _finish(self) -> None:
        """Wait for the last bucket, and raise what any rank has found wrong."""
        parameters = self._adapter.parameters
        missing = [name for name in parameters if name not in self._seen]
        if missing:  # one without a gradient holds up the buckets after its own
            missing = [name for name in missing if parameters[name].grad is None] or missing
        self._worker.submit(partial(self._reduction.end, tuple(parameters), missing, sorted(self._hand_over.hook.late)))
        error = self._worker.join()
        self._receives = False
        if error is not None:
            raise error

    def fail(self, why: str) -> None:
        """Tell the other ranks, which are at the end of the step, that this one has left it. Collective, as `sum`."""
        self.abandon()

    def cancel(self) -> None:
        """Wait for what is under way on this rank, and forget it."""
        self._worker.join()
        self._receives = False

    def abandon(self) -> None:
        """Leave a window in its middle. Collective: every rank must call it, whether it failed or not."""
        if self._receives and not self._facts.idle:
            self._worker.submit(partial(agree, Round.ABANDON, (), Notice.NOTHING, self._hand_over.background))
        self.cancel()
