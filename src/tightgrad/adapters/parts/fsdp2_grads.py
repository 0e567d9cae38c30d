"""Gradients of whole parameters that backwards without a reduction leave behind under FSDP2.

Up to torch 2.14 they are in `FSDPParam.unsharded_accumulated_grad`, an attribute, where they are of another dtype than
the parameter, and in `unsharded_param.grad` where they are not. From torch 2.15 on the former is a property that only
reads: autograd itself adds up in the dtype of the reduction, and a gradient waits in the unsharded parameter's or the
sharded parameter's `.grad`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tightgrad.adapters.parts.torch_private import can_set
from tightgrad.core.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

_ATTRIBUTE = "unsharded_accumulated_grad"


def unsharded_grad(param: FSDPParam) -> Tensor | None:
    """Return what backwards without a reduction have left, in whichever of its places FSDP2 keeps it."""
    grad: Tensor | None = param.unsharded_accumulated_grad
    leaf = unsharded_param(param)
    return leaf.grad if grad is None and leaf is not None else grad


def moves_itself(params: Iterable[FSDPParam]) -> bool:
    """Return whether torch moves gradients from one `.grad` to another between backward and forward (2.15)."""
    return any(not can_set(param, _ATTRIBUTE) for param in params)


def unsharded_param(param: FSDPParam) -> Tensor | None:
    """Return the whole parameter, which the first forward has made; None before."""
    leaf: Tensor | None = getattr(param, "_unsharded_param", None)
    return leaf


class HeldGrad:
    """Reads and writes one parameter's gradient between micro-batches.

    Where torch has no place to write to, a gradient is kept here until the next backward of its unit has made the
    whole parameter's own, and is added to that: `arrive` has to be called before the unit takes its gradients away.
    """

    def __init__(self, param: FSDPParam) -> None:
        self.param = param
        self._waiting: Tensor | None = None

    def get(self) -> Tensor | None:
        """Return the gradient so far."""
        return unsharded_grad(self.param) if self._waiting is None else self._waiting

    def put(self, grad: Tensor | None) -> None:
        """Replace the gradient; None leaves none."""
        leaf = unsharded_param(self.param)
        if leaf is not None:
            leaf.grad = None
        if can_set(self.param, _ATTRIBUTE):
            self.param.unsharded_accumulated_grad = grad
            return
        self.param.sharded_param.grad = None
        self._waiting = grad

    def arrive(self) -> None:
        """Add what waits here to what the coming reduction, or the next backward, will take.

        Raises:
            UnsupportedError: this version of torch does not take it.
        """
        grad, leaf = self._waiting, unsharded_param(self.param)
        if grad is None or leaf is None:
            return
        try:
            leaf.grad = grad if leaf.grad is None else leaf.grad + grad
        except RuntimeError as error:
            raise UnsupportedError(
                f"torch {torch.__version__} takes no gradient of {grad.dtype} for a parameter of {leaf.dtype} "
                f"({str(error).splitlines()[0]}), so a window that was saved in its middle cannot go on; resume from a "
                'checkpoint between two windows, or accumulate with sync="every".'
            ) from None
        self._waiting = None

    def is_left(self) -> bool:
        """Return whether a gradient is still here."""
        return self.get() is not None


def fill_unused(params: Iterable[FSDPParam]) -> None:
    """Give zeros to the parameters of a unit that is about to reduce and that no backward has reached.

    torch 2.13 does so by itself (`set_reduce_scatter_unused_params`). Older ones leave these parameters out of the
    reduction, so ranks that used different ones would send tensors of different lengths.
    """
    for param in params:
        leaf = unsharded_param(param)
        if leaf is not None and leaf.requires_grad and unsharded_grad(param) is None:
            leaf.grad = torch.zeros_like(leaf)


def make_dtypes_equal(params: Sequence[FSDPParam]) -> None:
    """Give all gradients of a unit that is about to reduce one dtype.

    Torch's reduction wants that (pytorch issue 196996), but where parameters are bfloat16 and the reduction is float32,
    earlier micro-batches have left float32 gradients, while a parameter that the last micro-batch is the first to use
    has a bfloat16 one, and one that nobody used is reduced as bfloat16 zeros. A cast to float32 changes no value.

    Args:
        params: the trained parameters of the unit.
    """
    dtypes = {
        param.unsharded_accumulated_grad.dtype
        for param in params
        if can_set(param, _ATTRIBUTE) and param.unsharded_accumulated_grad is not None
    }
    if len(dtypes) != 1:
        return
    (dtype,) = dtypes
    for param in params:
        leaf = unsharded_param(param)
        if param.unsharded_accumulated_grad is not None or leaf is None or leaf.dtype is dtype:
            continue
        if leaf.grad is not None:
            param.unsharded_accumulated_grad = leaf.grad.to(dtype)
            leaf.grad = None
        else:
            param.unsharded_accumulated_grad = torch.zeros_like(leaf, dtype=dtype)
