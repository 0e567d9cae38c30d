"""DistributedDataParallel: who sums its gradients, and in which backward.

What a backward does is decided by its micro-batch's forward, so `no_sync` encloses both.
"""

from collections.abc import Iterator, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeAlias

from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.ddp_hook import BucketHandOver
from tightgrad.adapters.parts.ready_once import ready_once
from tightgrad.adapters.parts.synced_forward import asks_for_sum
from tightgrad.adapters.parts.torch_private import check_can_set, check_has
from tightgrad.adapters.parts.unused_here import UnusedHere
from tightgrad.adapters.plain import Adapter, broadcast_tensors
from tightgrad.collectives import TorchCollective
from tightgrad.collectives.traffic import all_reduce_nbytes
from tightgrad.core.errors import UsageError
from tightgrad.core.notices import warn
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads

Sync: TypeAlias = Literal["last", "every", "never", "hook"]

_WHAT = "DistributedDataParallel"
_MEANS = [
    "tightgrad.adapters.ddp_hook",  # stays behind when a pipeline that compressed is closed
    *(
        f"torch.distributed.algorithms.ddp_comm_hooks.{name}"
        for name in ("default_hooks", "mixed_precision_hooks", "powerSGD_hook", "quantization_hooks")
    ),
]
"""Modules of hooks that give the mean over all ranks."""

_LOOKS = 2  # synchronised backwards in which gradients are watched; what makes them ready twice is there from the first


class DDPAdapter(Adapter):
    """Connects a module in DistributedDataParallel, whose own all-reduce is used, left out, or replaced.

    Args:
        model: the wrapper.
        sync: "last" lets DDP average once a window, overlapped with the last backward; "every" after each micro-batch.
            "never" leaves its all-reduce out: the pipeline sums after the last backward, nothing overlaps, and the
            whole path runs in order. "hook" hands the buckets over during the last backward, for which every rank has
            to run as many micro-batches as the others.
        collective: the data-parallel ranks; None takes the wrapper's process group.
        only: identities of the parameters that are trained; None trains all that require gradients.
        hand_over: with "hook", what hands the buckets over.
        is_compiled: whether the wrapper itself was compiled; its forwards cannot be watched then.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        sync: Sync,
        collective: Collective | None = None,
        only: Set[int] | None = None,
        hand_over: BucketHandOver | None = None,
        is_compiled: bool = False,
    ) -> None:
        super().__init__(model.module, collective or TorchCollective(model.process_group), only)
        self.model = model
        self.sync = sync
        self.reduces = sync in ("last", "every")
        self.every_rank_runs = sync != "never"  # some backward is synchronised
        self.marks_last = sync == "hook" or (sync == "last" and self.collective.world_size > 1)
        self.divisor = self.collective.world_size if self.reduces else 1
        self.hand_over = hand_over
        self._talks_in_forward |= model.broadcast_buffers and any(True for _ in model.module.buffers())
        self._synced = 0
        self._looks_left = _LOOKS if self.collective.world_size > 1 else 0
        self._watches_forwards = self.collective.world_size > 1 and not is_compiled
        self._unused = UnusedHere(model, self.collective)
        self._is_averaging = False
        self._looks_at_hooks = self.reduces and self.collective.world_size > 1

    @property
    def waits_in_forward(self) -> bool:
        """Tell whether DDP sends buffers, or has yet to build its buckets anew."""
        return self._talks_in_forward or self._will_rebuild_buckets()

    @property
    def needs_every_gradient(self) -> bool:
        """Tell whether DDP waits for the gradient of every parameter that was trainable when it was built."""
        return self.collective.world_size > 1 and self.every_rank_runs and not self.model.find_unused_parameters

    @property
    def moves_gradients(self) -> bool:
        """Tell whether gradients are views of buckets that may yet be built anew."""
        return self.model.gradient_as_bucket_view and self._will_rebuild_buckets()

    def _will_rebuild_buckets(self) -> bool:
        """Whether a forward will, once, to agree on the order of gradients seen in the first synchronised backward.
        Where torch does not say whether that has been, it may come any time.
        """
        rebuilds = self.every_rank_runs and (self.model.static_graph or not self.model.find_unused_parameters)
        return rebuilds and not getattr(self.model, "_has_rebuilt_buckets", False)

    def begin_window(self) -> None:
        """Send rank 0's buffers to all ranks, unless DDP does so in a forward that it synchronises.

        Raises:
            UsageError: inside `model.join()`, whose collectives would meet the pipeline's.
        """
        if not self.reduces and self.model._join_config.enable:  # private in torch 2.9 to 2.15
            raise UsageError(
                "DistributedDataParallel.join() sends messages of its own in each forward, which ranks that sum after "
                "or during backward here would take for gradients. Leave `with model.join():` out: pipe.windows() "
                "takes loaders of unequal length. Torch goes on sending them after join() has ended; wrap the model "
                "anew then."
            )
        if self._looks_at_hooks and (names := other_hooks(self.model)):
            self._looks_at_hooks = False
            if self.collective.rank == 0:
                warn(
                    f"DistributedDataParallel sends gradients with a communication hook of its own ({names}), and the "
                    "pipeline takes what that gives for the mean over all ranks. A hook that only sums, sends nothing "
                    "or steps an optimizer makes steps wrong, and nobody would see it: leave register_comm_hook out, "
                    "and compress with Plan(compress=...). If the hook gives the mean, ignore this TightGradWarning.",
                    stacklevel=5,
                )
        if not self.reduces and self.model.training and self.model.broadcast_buffers:
            broadcast_tensors(self.model.module.buffers(), self.collective)

    def micro_batch(self, index: int, count: int) -> AbstractContextManager[None]:
        """Return `no_sync`, but for micro-batches whose backward is synchronised.

        Raises:
            UsageError: at its end, if no forward asked DDP to average, or gradients went on growing after it had.
        """
        if not self.reduces:
            # `begin_window` has sent buffers; DDP would send them again in a forward that not every rank may have.
            self.model.require_forward_param_sync = False
        if self.sync == "never" or (self.sync != "every" and index < count - 1):
            return self.model.no_sync()
        if not self.reduces:
            return self._handed_over()
        self._synced += 1
        self._looks_left -= 1
        return self._averaged()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        once = ready_once(self.parameters) if self._looks_left >= 0 else nullcontext()
        self._is_averaging = self.collective.world_size > 1
        try:
            with asks_for_sum(self.model) if self._watches_forwards else nullcontext(), once:
                yield
        finally:
            self._is_averaging = False

    def after_backward(self) -> None:
        """Add 0 to parameters for whose gradients DDP still waits, on this rank and the others."""
        if self._is_averaging:
            self._unused.add_zeros(stacklevel=6)

    @contextmanager
    def _handed_over(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.model.require_forward_param_sync = False  # else a forward of evaluation would send buffers

    def restore_accumulated(self, grads: Grads) -> None:
        """Put the gradients back as `parameter.grad`, and take these parameters as used."""
        super().restore_accumulated(grads)
        if self.hand_over is not None:
            self.hand_over.hook.start_with(grads)

    def forget_window(self, *, is_complete: bool = False) -> None:
        """Let DDP forget a synchronised forward whose backward has not run, or has failed. Collective: every rank must
        call it.

        The next backward would be reduced in its place, under `no_sync` as well. DDP agrees on its buckets anew. After
        a backward that DDP itself has reduced nothing is left, and other ranks may have stepped with it.
        """
        if self.every_rank_runs and not (self.reduces and is_complete):
            self.model._has_rebuilt_buckets = False
            self.model.reducer._reset_state()

    def release(self) -> None:
        """Let DDP average, and send buffers before its next forward."""
        if not self.reduces:
            self.model.require_forward_param_sync = True
        if self.hand_over is not None:
            self.hand_over.hook.serve_nobody()

    def sent_nbytes(self) -> int:
        """Return the bytes of one all-reduce of all parameters' gradients for each backward that DDP averaged."""
        nbytes = sum(parameter.numel() * parameter.element_size() for parameter in self.parameters.values())
        synced, self._synced = self._synced, 0
        return synced * all_reduce_nbytes(nbytes, self.collective.world_size)


def other_hooks(model: DistributedDataParallel) -> str:
    """Return the names of communication hooks that are not known to give the mean over all ranks."""
    hooks = [hook for hook, _ in getattr(model, "_comm_hooks", ())]  # private in torch 2.9 to 2.15
    others = [hook for hook in hooks if getattr(hook, "__module__", "") not in _MEANS]
    return ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in others)


def check_ddp_internals(model: DistributedDataParallel) -> None:
    """Raise if DDP lacks what is set or called here besides its public interface.

    Raises:
        UnsupportedError: names the version of torch and what is missing.
    """
    # Private in torch 2.9 to 2.14. DDP itself sets these at every forward, so they are plain attributes.
    check_can_set(model, ("require_forward_param_sync", "_has_rebuilt_buckets"), _WHAT)
    check_has(model, ("reducer", "_join_config", "broadcast_buffers", "find_unused_parameters", "static_graph"), _WHAT)
    check_has(
        model.reducer,
        ("_reset_state", "_check_reducer_finalized"),
        f"{_WHAT}, whose buckets have to be forgotten after an error, and which has to tell whether it waits,",
    )
