"""torch 2.15's `FSDPParam.unsharded_accumulated_grad`, put on the installed torch: a property that only reads.

Two things are emulated. Autograd adds up in the unsharded parameter's `.grad`, as in every version where gradients have
the parameter's dtype, so a float32 model runs under it bit for bit. Between a backward without a reduction and the next
forward the gradient is shown in the sharded parameter's `.grad`, as a tensor of a class of its own.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor
from torch.distributed.tensor import DTensor

ATTRIBUTE = "unsharded_accumulated_grad"


def _is_torch(frame: Any) -> bool:
    return frame.f_globals["__name__"].startswith("torch.")


class Pending(DTensor):
    """What is not reduced yet; its values are nobody's business."""

    pending: Tensor


def publish(param: Any) -> None:
    """After a backward without a reduction."""
    leaf = getattr(param, "_unsharded_param", None)
    if leaf is None or leaf.grad is None:
        return
    sharded = param.sharded_param
    shown = Pending(sharded._local_tensor.detach() * float("nan"), sharded._spec, requires_grad=False)
    shown.pending, leaf.grad, sharded.grad = leaf.grad, None, shown


def restore(param: Any) -> None:
    """Before the next use of the whole parameter; what a user has cleared is gone."""
    shown = param.sharded_param.grad
    if type(shown) is Pending:
        param._unsharded_param.grad, param.sharded_param.grad = shown.pending, None


class _Grad:
    """A data descriptor: torch's own code, which is older, may still set None and reads that back."""

    def __get__(self, param: Any, kind: Any = None) -> Tensor | None:
        if param is None or _is_torch(sys._getframe(1)):
            return None
        if type(param.sharded_param.grad) is Pending:
            return param.sharded_param.grad.pending
        leaf = getattr(param, "_unsharded_param", None)
        return None if leaf is None else leaf.grad

    def __set__(self, param: Any, value: Tensor | None) -> None:
        if not _is_torch(sys._getframe(1)):
            raise AttributeError(f"property '{ATTRIBUTE}' of 'FSDPParam' object has no setter")
        assert value is None


@contextmanager
def only_reads() -> Iterator[None]:
    """Inside, models under `fully_shard` that are made have the property."""
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    pre_forward, post_backward = FSDPParamGroup.pre_forward, FSDPParamGroup.post_backward

    def before_forward(group: Any, *args: Any) -> Any:
        found = pre_forward(group, *args)
        for param in group.fsdp_params:
            restore(param)
        return found

    def after_backward(group: Any, *args: Any) -> None:
        post_backward(group, *args)
        if not group.reduce_grads:
            for param in group.fsdp_params:
                publish(param)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FSDPParam, ATTRIBUTE, _Grad(), raising=False)
        patch.setattr(FSDPParamGroup, "pre_forward", before_forward)
        patch.setattr(FSDPParamGroup, "post_backward", after_backward)
        yield
