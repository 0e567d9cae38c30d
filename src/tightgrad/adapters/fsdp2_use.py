"""Which parameters a backward under FSDP2 has reached: after it has reduced, all gradients of a unit look the same."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup


class BeforePostBackward:
    """Stands before a group's `post_backward`, which FSDP2 calls once a backward and which takes the gradients away.

    Args:
        post_backward: the group's own.
        look: called before it.
    """

    def __init__(self, post_backward: Callable[..., None], look: Callable[[], None]) -> None:
        self.post_backward = post_backward
        self._look = look

    def __call__(self, *unused: Any) -> None:
        """Look, then go on."""
        self._look()
        self.post_backward(*unused)


def look_before_post_backward(group: FSDPParamGroup, look: Callable[[], None]) -> None:
    """Call `look` from now on, and no longer what an earlier adapter of this module has set."""
    own = group.post_backward
    if isinstance(own, BeforePostBackward):
        own = own.post_backward
    group.post_backward = BeforePostBackward(own, look)  # type: ignore[method-assign]


def unsharded_grad(fsdp_param: FSDPParam) -> Tensor | None:
    """What backwards without a reduction have left, in whichever of its two places FSDP2 keeps it."""
    grad: Tensor | None = fsdp_param.unsharded_accumulated_grad
    unsharded: Tensor | None = getattr(fsdp_param, "_unsharded_param", None)
    return unsharded.grad if grad is None and unsharded is not None else grad
