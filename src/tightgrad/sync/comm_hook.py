"""Compression for those who keep their own loop: one line on a DistributedDataParallel module."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.ddp import check_ddp_internals
from tightgrad.adapters.ddp_hook import Bucket, BucketHook, bucket_hook, in_inner_backward, pending
from tightgrad.adapters.parts.ddp_ignored import check_reduces_all
from tightgrad.adapters.parts.placement import check_not_split
from tightgrad.adapters.parts.torch_private import check_has
from tightgrad.adapters.plain import trainable_parameters, unwrap_compiled
from tightgrad.adapters.worker import FifoWorker
from tightgrad.checkpoint.folder import load_on_every_rank, save_state
from tightgrad.checkpoint.state import PipelineState
from tightgrad.collectives import TorchCollective
from tightgrad.core.check import check_integer
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import IncompatiblePlanError, UnsupportedError
from tightgrad.core.protocols import Collective
from tightgrad.plan.plan import Compress, Plan
from tightgrad.sync.bucket_reduction import BucketReduction
from tightgrad.sync.complex_parameters import check_no_complex
from tightgrad.sync.compressed import residual_norm
from tightgrad.sync.discarded import DiscardedSteps
from tightgrad.sync.handshake import check_ranks_agree
from tightgrad.sync.protocol import WindowFacts
from tightgrad.sync.same_round import Notice
from tightgrad.version import __version__


def ddp_comm_hook(
    model: nn.Module,
    compress: Compress,
    *,
    seed: int = 0,
    scaler: torch.amp.GradScaler | None = None,
) -> "CommHook":
    """Let a DDP module send compressed gradients, and leave the loop as it is. Collective: every rank must call it.

    Each bucket is reduced as soon as its gradients are ready, while backward goes on, and `parameter.grad` is the mean
    over ranks, as with plain DDP. Where any rank's gradient is inf or NaN, all ranks get NaN, which a GradScaler sees,
    and nothing is remembered of that backward. Micro-batches but the last must run under `no_sync`, as with plain DDP.
    Clipping, windows and weights are the loop's own business; `attach` does all of it.

    Args:
        model: in DistributedDataParallel, compiled or not, without another communication hook.
        compress: codec, reducer, feedback.
        seed: of all random numbers that methods draw.
        scaler: the loop's GradScaler, so that what is remembered is in units of the true gradient.

    Returns:
        What is remembered: save it with the model.

    Raises:
        UnsupportedError: the model is not in DistributedDataParallel, or its settings allow no such hook.
        IncompatiblePlanError: `compress` has a fallback.
        RankMismatchError: the ranks came with different settings, models, seeds or versions.

    Examples:
        >>> import torch, torch.distributed as dist, tightgrad as tg
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1, bias=False))
        >>> hook = tg.ddp_comm_hook(model, tg.Compress(tg.codecs.TopK(0.5), feedback=tg.ErrorFeedback()))
        >>> model(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> model.module.weight.grad, hook.residual_norm
        (tensor([[0., 4.]]), 3.0)
        >>> dist.destroy_process_group()
    """
    check_integer("seed", seed, low=0)
    inner = unwrap_compiled(model)
    if not isinstance(inner, DistributedDataParallel):
        raise UnsupportedError(
            f"ddp_comm_hook needs a DistributedDataParallel module, not {type(inner).__name__}; wrap the model, or use "
            "attach()."
        )
    if compress.fallback is not None:
        raise IncompatiblePlanError(
            "a fallback judges whole steps, of which a communication hook knows nothing; use attach(), or drop it."
        )
    check_reduces_all(inner)
    check_not_split(inner.module, "ddp_comm_hook")
    check_ddp_internals(inner)
    check_has(Variable, ("_execution_engine",), "ddp_comm_hook")  # private in torch 2.9 to 2.14; FSDP2 uses it too
    check_no_complex(compress.resolved(), trainable_parameters(inner.module))
    hook = bucket_hook(inner)
    collective = TorchCollective(inner.process_group)
    check_ranks_agree(Plan(compress=compress), hook.parameters, seed, collective, __version__)
    comm_hook = CommHook(hook, collective, compress, seed, scaler, votes_on_use=inner.find_unused_parameters)
    hook.serve_always(comm_hook.receive)
    inner.register_forward_pre_hook(_BeforeForward(torch.compiler.disable(comm_hook.before_forward)))
    inner.module.register_forward_pre_hook(_BeforeForward(torch.compiler.disable(comm_hook.before_inner_forward)))
    return comm_hook


class _BeforeForward:
    """Is called before a module's forward; in a copy of the module, or in its pickle, it does nothing."""

    def __init__(self, call: Callable[[nn.Module, object], None] = lambda module, args: None) -> None:
        self._call = call

    def __call__(self, module: nn.Module, args: object) -> None:
        self._call(module, args)

    def __reduce__(self) -> tuple[type["_BeforeForward"], tuple[()]]:
        return _BeforeForward, ()


class CommHook:
    """Holds what a DDP module's compression remembers; made by `tightgrad.ddp_comm_hook`. Differs by rank."""

    def __init__(
        self,
        hook: BucketHook,
        collective: Collective,
        compress: Compress,
        seed: int,
        scaler: torch.amp.GradScaler | None,
        *,
        votes_on_use: bool,
    ) -> None:
        self.compress = compress
        self._parameters = hook.parameters
        self._slots = Plan(compress=compress).slots
        self._collective = collective
        self._scaler = scaler
        self._state = PipelineState()
        self._worker = FifoWorker(next(iter(hook.parameters.values())).device)
        self._seed = seed
        self._votes_on_use = votes_on_use
        self._background = collective.split([range(collective.world_size)])
        self._clock = StageClock()
        self._reduction: BucketReduction
        self._scale = 1.0
        self._seen: set[str] = set()
        self._watched = min(hook.parameters.values(), key=torch.numel)
        self._delivered: tuple[Tensor, int] | None = None
        self._not_cleared = False
        self._hook = hook
        self._will_end = False
        looks = compress.feedback is not None and collective.rank == 0  # one rank's warning is enough
        self._discarded = DiscardedSteps(hook.parameters) if looks else None

    @property
    def num_backwards(self) -> int:
        """Return the number of synchronised backwards whose gradients were delivered."""
        return self._state.step

    @property
    def wire_bytes(self) -> int:
        """Return the bytes that left this rank so far."""
        return self._collective.traffic.nbytes

    @property
    def residual_norm(self) -> float | None:
        """Return the 2-norm of what this rank has not sent yet; None without feedback that keeps it."""
        return residual_norm(self._state.slots, self._slots)

    def state_dict(self) -> dict[str, Any]:
        """Return everything this rank remembers: plain tensors and numbers."""
        return self._state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            StateMismatchError: the state is of another version, or does not fit these settings and this model.
        """
        self._state.load_state_dict(state, self._parameters, self._slots)

    def save(self, folder: str | Path) -> Path:
        """Write every rank's state below `folder`, which all ranks share. Collective: every rank must call it.

        Raises:
            CheckpointError: on every rank, if any could not write; the checkpoint before stays in force.
        """
        return save_state(self.state_dict, Path(folder), self._collective)

    def load(self, folder: str | Path) -> None:
        """Restore the newest complete checkpoint below `folder`, also of another number of ranks: the sum of residuals
        is preserved. Collective: every rank must call it.

        Raises:
            CheckpointError: on every rank, if any rank's file is missing or damaged, or there is none.
            StateMismatchError: the same, where the state does not fit.
        """

        def check(state: Mapping[str, Any], _found: object) -> None:
            PipelineState().load_state_dict(state, self._parameters, self._slots)

        self.load_state_dict(load_on_every_rank(Path(folder), self._slots, self._collective, check))

    def before_forward(self, module: nn.Module, args: object) -> None:
        """Look whether gradients that were delivered are still there, as after a forgotten `no_sync`, or were cleared
        before any step, and whether a backward before has not come to its end.
        """
        if not torch.is_grad_enabled():
            return
        if self._seen and not in_inner_backward():
            self._end()
        if self._delivered is not None:
            grad, version = self._delivered
            self._not_cleared = self._watched.grad is grad and grad._version == version
            if self._discarded is not None and not self._not_cleared:
                self._discarded.cleared(self._watched)

    def before_inner_forward(self, module: nn.Module, args: object) -> None:
        """Expect gradients of another backward, also where the module inside is called without its wrapper."""
        if torch.is_grad_enabled() and not self._seen:
            self._hook.begin()

    def receive(self, bucket: Bucket) -> "Future[Tensor]":
        """Take a bucket from DDP, on the thread of its backward."""
        notice = Notice.NOTHING
        if not self._seen:
            self._begin()
            notice = Notice.REPEATED if self._not_cleared else notice
        self._seen.update(bucket.grads)
        # A callback runs when the backward that asked for it ends. One inside another ends too early, unless it brings
        # the last bucket: DDP itself finishes then.
        if not self._will_end and (bucket.is_last or not in_inner_backward()):
            self._will_end = True
            # DDP waits for the buckets in a callback that it asks for later; so this one asks for another, after DDP's.
            Variable._execution_engine.queue_callback(self._ask_to_end)
        future = pending(bucket.buffer.device)
        self._worker.submit(partial(self._reduce, bucket, notice), then=lambda: future.set_result(bucket.buffer))
        return future

    def _begin(self) -> None:
        self._scale = self._scaler.get_scale() if self._scaler is not None else 1.0
        factor = 1.0 / (self._scale * self._collective.world_size)
        facts = WindowFacts(self._state.slots, self._state.step, factor)
        self._reduction = BucketReduction(
            self.compress.resolved(),
            facts,
            facts.context(self._background, self._seed, self._clock),
            on_nonfinite="skip",
            votes_on_use=self._votes_on_use,
        )

    def _ask_to_end(self) -> None:
        Variable._execution_engine.queue_callback(self._end)

    def _reduce(self, bucket: Bucket, notice: Notice) -> None:
        try:
            totals = self._reduction.reduce(bucket.grads, bucket.used, notice)
        except BaseException:
            bucket.buffer.fill_(float("nan"))
            raise
        if not self._reduction.finite:
            bucket.buffer.fill_(float("nan"))
        for name, total in totals.items():
            bucket.grads[name].copy_(total if self._scale == 1.0 else total * self._scale)

    def _end(self) -> None:
        """After DDP has written gradients: agree that all went well, and only then remember."""
        names = tuple(self._parameters)
        missing = [name for name in names if name not in self._seen]
        self._seen.clear()
        self._will_end = False
        self._worker.submit(partial(self._commit, names, missing, self._hook.end()))
        error = self._worker.join()
        if error is not None:
            raise error
        grad = self._watched.grad
        self._delivered = None if grad is None else (grad, grad._version)
        if self._discarded is not None and self._reduction.finite:
            self._discarded.delivered(self._watched)

    def _commit(self, names: tuple[str, ...], missing: list[str], late: list[str]) -> None:
        self._reduction.end(names, missing, late)
        if self._reduction.finite:
            self._state.applied(self._reduction.slots)
