"""Which parameters a backward under FSDP2 has reached: after it has reduced, all gradients of a unit look the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tightgrad.adapters.parts.fsdp2_torch import WHAT
from tightgrad.adapters.parts.torch_private import unknown_torch

if TYPE_CHECKING:
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
    """Call `look` from now on, and no longer what an earlier adapter of this module has set.

    Raises:
        UnsupportedError: this version of torch does not let a method of its own be replaced.
    """
    own = group.post_backward
    if isinstance(own, BeforePostBackward):
        own = own.post_backward
    try:
        group.post_backward = BeforePostBackward(own, look)  # type: ignore[method-assign]
    except AttributeError:
        raise unknown_torch(f"{type(group).__name__}.post_backward cannot be replaced", WHAT) from None


def stop_looking(group: FSDPParamGroup) -> None:
    """Take back what `look_before_post_backward` did."""
    if isinstance(group.post_backward, BeforePostBackward):
        del group.post_backward  # the class's own method comes to light again
