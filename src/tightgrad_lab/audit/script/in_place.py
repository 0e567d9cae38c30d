"""Data that a script changes in place although they are used again: slices of a data set that are masked or scaled."""

from typing import Any

import torch
from torch import Tensor

from tightgrad_lab.audit.script.places import caller

KEEPS = ("add_", "sub_", "mul_", "div_", "masked_fill_", "__setitem__", "__iadd__", "__isub__", "__imul__", "__idiv__")
"""What changes a tensor by way of what is in it; what only fills it anew makes other data of it, which is meant."""
FIRST_LAYERS = ("embedding", "linear", "conv1d", "conv2d", "conv3d")
LARGEST = 1 << 20
Region = tuple[int, tuple[int, ...]]


class InPlace:
    """Slices that were changed in place.

    Attributes:
        fetching: how many fetches of a DataLoader are running.
        places: where data were changed that are used -> how often the same ones were changed, at most.
    """

    def __init__(self) -> None:
        self.fetching = 0
        self.places: dict[str, int] = {}
        self._changed: dict[Region, tuple[str, int]] = {}

    def before(self, name: str, args: tuple[Any, ...]) -> Tensor | None:
        """What is in a slice that a call may change; None if it is of no interest."""
        if name not in KEEPS or not args or not isinstance(args[0], Tensor):
            return None
        base = args[0]._base
        if base is None or args[0].requires_grad or args[0].numel() > LARGEST or base.numel() <= args[0].numel():
            return None
        if name == "__setitem__" and not _is_mask(args[1]):
            return None
        return args[0].detach().clone()

    def watch(self, name: str, args: tuple[Any, ...], before: Tensor | None) -> None:
        """One call has ended."""
        if before is not None and not torch.equal(before, args[0]):
            place, times = self._changed.get(_region(args[0]), ("", 0))
            self._changed[_region(args[0])] = (place or caller(4), times + 1)
            if self.fetching:
                self._used(args[0])
        elif name in FIRST_LAYERS and self._changed and isinstance(args[0], Tensor) and torch.is_grad_enabled():
            self._used(args[0])

    def _used(self, tensor: Tensor) -> None:
        place, times = self._changed.get(_region(tensor), ("", 0))
        if times:
            self.places[place] = max(times, self.places.get(place, 0))


def _is_mask(key: Any) -> bool:
    return isinstance(key, Tensor) and key.dtype == torch.bool


def _region(tensor: Tensor) -> Region:
    return tensor.data_ptr(), tuple(tensor.shape)
