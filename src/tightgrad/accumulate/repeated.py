"""Batches that a rank runs again, without weight, since its wrapper needs as many as other ranks have.

They are marked copies. A loop that keeps what it is given and hands it to the windows of a second model, as a GAN's
does with the batches of its discriminator, would else count them there.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from tightgrad.accumulate.batch_tree import entries
from tightgrad.accumulate.split import fresh

_MARK = "_tightgrad_repeated"


def repeated(batch: Any) -> Any:
    """Return a copy of a batch whose tensors are known as repeated ones as long as they live."""
    copy = fresh(batch)
    for tensor in _tensors(copy):
        setattr(tensor, _MARK, True)
    return copy


def is_repeated(batch: Any) -> bool:
    """Tell whether any tensor of a batch comes from `repeated`; a copy of it on another device does not tell."""
    return any(hasattr(tensor, _MARK) for tensor in _tensors(batch))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for _, _, item in entries(value, ""):
        yield from _tensors(item)
