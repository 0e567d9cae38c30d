"""DistributedDataParallel whose buckets are handed over as soon as their gradients are ready, while backward goes on.

The hook only hands over: the bucket is this rank's own sum, and DDP gets it back as it is, so `parameter.grad` holds
local gradients afterwards, as in the explicit mode. Which bucket a parameter is in changes (DDP builds its buckets
anew after the first backward), so gradients are known by name.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from tightgrad.adapters.parts.ready_once import grew_late
from tightgrad.adapters.plain import trainable_parameters
from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads

_ATTRIBUTE = "_tightgrad_bucket_hook"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Gradients that are ready.

    Attributes:
        grads: views of the bucket by parameter name; zeros where this rank did not use the parameter.
        used: names of those that this rank used since the last synchronised backward.
        buffer: the whole bucket, one dimension.
        is_last: whether it is the last one of this backward.
    """

    grads: Grads
    used: frozenset[str]
    buffer: Tensor
    is_last: bool


Receiver = Callable[[Bucket], "Future[Tensor]"]


class BucketHook:
    """What is registered on a DDP module: once, since torch allows no more; whom it serves may change.

    A receiver gets each bucket, in the same order on every rank, and gives what DDP writes to `parameter.grad`. With
    nobody to serve, DDP averages as it does without a hook. A receiver that is gone is an error: when Python collects
    it is not the same on every rank.

    Attributes:
        late: names of gradients that went on growing after they had been handed over.
    """

    def __init__(self, model: DistributedDataParallel) -> None:
        self._receiver: Callable[[], Receiver | None] = _nobody
        self.parameters = trainable_parameters(model.module)
        self._strides = {name: parameter.stride() for name, parameter in self.parameters.items()}
        # DDP lays gradients out as such parameters (channels_last among them), and others contiguously.
        self._is_dense = {n for n, p in self.parameters.items() if torch.empty_like(p).stride() == p.stride()}
        self._process_group = model.process_group
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._used: set[str] = set()
        self._tracks_use = bool(model.find_unused_parameters)
        self._handed: dict[str, int] = {}
        self.late: set[str] = set()
        self.is_over = False
        for parameter in self.parameters.values():
            parameter.register_post_accumulate_grad_hook(self._note_growth)

    def _note_growth(self, parameter: Tensor) -> None:
        """Called whenever a backward has added to `parameter.grad`.

        Once its bucket is on its way, this must not happen any more in the same backward; in a later one, after the
        optimizer has changed the parameter, it may.
        """
        name = self._names[id(parameter)]
        self._used.add(name)
        if self._handed.get(name) == parameter._version:
            self.late.add(name)
            if self.is_over:
                raise UsageError(grew_late([name]))

    def begin(self) -> None:
        """Forget which gradients were handed over; to be called before the forward of a backward that reduces."""
        self._handed.clear()
        self.late.clear()
        self.is_over = False

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """Leave nothing in a copy of the module or in its pickle, whose reducer has no hook."""
        return _nobody, ()

    def end(self) -> list[str]:
        """Return the names of gradients that grew late; from now on one that does is an error at once."""
        self.is_over = True
        return sorted(self.late)

    def serve(self, receive: Receiver) -> None:
        """Hand over to a method from now on, as long as its object lives: torch never lets go of a hook."""
        self._receiver = weakref.WeakMethod(receive)

    def serve_always(self, receive: Receiver) -> None:
        """Hand over to `receive` from now on; it must not hold the module, which would never be freed."""
        self._receiver = lambda: receive

    def serve_nobody(self) -> None:
        """Let DDP average the buckets by itself."""
        self._receiver = _nobody

    @property
    def receive(self) -> Receiver | None:
        """Return whom it serves; None to let DDP average.

        Raises:
            UsageError: the object that it served does not live any more.
        """
        receiver = self._receiver()
        if receiver is None and self._receiver is not _nobody:
            raise UsageError(
                "the pipeline that reduces the gradients of this DistributedDataParallel module is gone; keep what "
                "attach() gave as long as the module is trained, or attach(model, optimizer, Plan()) to let it average."
            )
        return receiver

    def start_with(self, names: Iterable[str]) -> None:
        """Take these parameters as used so far, and no other."""
        self._used = set(names)

    def bucket(self, bucket: GradBucket) -> Bucket:
        """Name what DDP hands over."""
        parameters = [self._names[id(parameter)] for parameter in bucket.parameters()]
        if bucket.buffer().is_sparse:
            raise UnsupportedError(f"the gradient of {parameters[0]!r} is sparse; build its layer with sparse=False.")
        grads = {name: self._as_laid_out(name, grad) for name, grad in zip(parameters, bucket.gradients(), strict=True)}
        self._handed.update((name, self.parameters[name]._version) for name in grads)
        used = frozenset(self._used & grads.keys() if self._tracks_use else grads)
        self._used -= used
        return Bucket(grads, used, bucket.buffer(), bucket.is_last())

    def _as_laid_out(self, name: str, grad: Tensor) -> Tensor:
        """View a gradient as DDP has written it: with the parameter's strides, where torch's view is contiguous."""
        parameter = self.parameters[name]
        if parameter.stride() != self._strides[name]:
            raise UsageError(
                f"{name!r} has other strides than when its gradients were first handed over, and torch does not tell "
                "how its buckets are laid out now. Change the memory format before wrapping the model in "
                "DistributedDataParallel."
            )
        return grad.as_strided(grad.shape, parameter.stride()) if name in self._is_dense else grad

    def average(self, bucket: GradBucket) -> "Future[Tensor]":
        """Average a bucket as DDP does by itself."""
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook  # with five modules more

        return allreduce_hook(self._process_group, bucket)


def hand_over(state: BucketHook, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Serve as the hook; torch asks for these very names and annotations."""
    receive = state.receive
    return state.average(bucket) if receive is None else receive(state.bucket(bucket))


def _nobody() -> None:
    return None


def bucket_hook(model: DistributedDataParallel) -> BucketHook:
    """Return the hook of this module, registered if it is not yet.

    Raises:
        UnsupportedError: the module has another communication hook, or calls hooks in a way that has no buckets.
    """
    _check_calls_hooks(model)
    held = getattr(model, _ATTRIBUTE, None)
    if isinstance(held, BucketHook):
        return held
    hook = BucketHook(model)
    try:
        model.register_comm_hook(hook, hand_over)
    except RuntimeError as error:
        raise UnsupportedError(
            f"the DistributedDataParallel module takes no communication hook ({str(error).splitlines()[0]}); build it "
            'anew without the other hook, or take Compress(overlap="none").'
        ) from None
    setattr(model, _ATTRIBUTE, hook)
    _refuse_join(model, hook)
    return hook


_INNER: CodeType = BackwardCFunction.apply.__code__  # what torch calls a Python function's backward by (2.9 to 2.13)


def in_inner_backward() -> bool:
    """Tell whether this is called by a backward inside another one, as reentrant checkpointing does.

    A Python function's own backward is on the stack then: the engine runs inner backwards in the thread of the outer.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is _INNER:
            return True
        frame = frame.f_back
    return False


def _refuse_join(model: DistributedDataParallel, hook: BucketHook) -> None:
    """Let `model.join()` raise while somebody is served: a rank without batches would have to take part in rounds of
    which it knows nothing.
    """
    setattr(model, "join_hook", partial(_join_hook, model, hook))  # noqa: B010, a method of the class


def _join_hook(model: DistributedDataParallel, hook: BucketHook | None, **arguments: Any) -> Any:
    if hook is not None and hook.receive is not None:  # a copy of the module has none
        raise UsageError(
            "DistributedDataParallel.join() cannot be had while gradients are compressed in its communication hook: a "
            "rank without batches answers for the others' buckets outside of any backward. After attach() leave join() "
            "out: windows take loaders of unequal length. After ddp_comm_hook() give every rank as many batches "
            "(DistributedSampler does), or use attach()."
        )
    return type(model).join_hook(model, **arguments)


def held_hook(model: DistributedDataParallel) -> BucketHook | None:
    """Return the hook of this module, if it has been registered."""
    held = getattr(model, _ATTRIBUTE, None)
    return held if isinstance(held, BucketHook) else None


def refuses_hook(model: DistributedDataParallel, several_backwards: bool) -> str | None:
    """Say why buckets of this module cannot be reduced while backward goes on; None if they can."""
    if model.static_graph:
        return "DistributedDataParallel(static_graph=True) delays its hook to the end of its first backward"
    if getattr(model, "_use_python_reducer", False):
        return 'torch._dynamo.config.optimize_ddp="python_reducer" calls hooks without buckets'
    if any(parameter.is_complex() for parameter in trainable_parameters(model.module).values()):
        return (
            "the model has complex parameters, of whose gradients torch's GradBucket.gradients() gives one half (2.13)"
        )
    if several_backwards and any(p.dtype in (torch.float16, torch.bfloat16) for p in model.module.parameters()):
        return "its buckets would add up several float16 or bfloat16 micro-batches in low precision"
    return None


def completed(tensor: Tensor) -> "Future[Tensor]":
    """Return a future that holds `tensor` already."""
    future = pending(tensor.device)
    future.set_result(tensor)
    return future


def pending(device: torch.device) -> "Future[Tensor]":
    """Return a future of a tensor on `device`."""
    return Future(devices=[device]) if device.type == "cuda" else Future()


def _check_calls_hooks(model: DistributedDataParallel) -> None:
    reason = refuses_hook(model, several_backwards=False)
    if reason is not None:
        raise UnsupportedError(f'{reason}; use attach() with Compress(overlap="none"), or build the module without it.')


class BucketHandOver:
    """Hands over a module's buckets during the backward of a window's last micro-batch.

    Args:
        model: takes the hook.
        collective: the data-parallel ranks.
        parameters: the trained ones, by name.

    Attributes:
        background: the ranks, as a process group of its own, for the thread that reduces.
        votes_on_use: whether ranks may use different parameters.
        device: of the gradients.
    """

    background: Collective

    def __init__(
        self, model: DistributedDataParallel, collective: Collective, parameters: Mapping[str, nn.Parameter]
    ) -> None:
        self.hook = bucket_hook(model)
        self.parameters = parameters
        self.votes_on_use = bool(model.find_unused_parameters)
        self.device = next(iter(parameters.values())).device
        self._collective = collective

    def connect(self) -> None:
        """Make the group for the thread. Collective: every rank must call it."""
        self.background = self._collective.split([range(self._collective.world_size)])
