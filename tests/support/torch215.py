"""torch 2.15's `FSDPParam.unsharded_accumulated_grad`, put on the installed torch: a property that only reads.

Of torch itself only one thing is emulated: autograd adds up in the unsharded parameter's `.grad`. That is what every
version does where gradients have the parameter's dtype, so a float32 model runs under it bit for bit.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

ATTRIBUTE = "unsharded_accumulated_grad"


def _is_torch(frame: Any) -> bool:
    return frame.f_globals["__name__"].startswith("torch.")


class _Grad:
    """A data descriptor: torch's own code, which is older, may still set None and reads that back."""

    def __get__(self, param: Any, kind: Any = None) -> Tensor | None:
        if param is None or _is_torch(sys._getframe(1)):
            return None
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

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FSDPParam, ATTRIBUTE, _Grad(), raising=False)
        yield
