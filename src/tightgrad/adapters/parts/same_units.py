"""Whether all ranks enter the modules under `fully_shard` in the same order, looked at in the first windows.

FSDP2 gathers a module's weights from all ranks when it is entered. Where ranks enter different ones, torch takes parts
of different modules for one (silently, if they are of one size), aborts the process, or waits until its time-out.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from tightgrad.collectives import TorchCollective
from tightgrad.core.errors import UsageError

_WINDOWS = 2
_BACKWARD = -1


class SameUnits:
    """Compares what each rank is about to enter, before it does.

    Args:
        units: modules that gather weights, by name; none of them compiled.
        group: process group of the ranks that gather them; None compares nothing.
    """

    def __init__(self, units: Mapping[str, nn.Module], group: Any) -> None:
        # Its own traffic: what is compared is none of training's.
        self._collective = None if group is None or len(units) < 2 else TorchCollective(group)
        looks = self._collective is not None and self._collective.world_size > 1
        self._names, self._windows, self._looks = list(units), 0, False
        entries = enumerate(units.values()) if looks else ()
        self._hooks = [
            unit.register_forward_pre_hook(partial(_entered, self, number), prepend=True) for number, unit in entries
        ]

    def begin(self) -> None:
        """Look from here on: a micro-batch of a window has begun."""
        self._looks = bool(self._hooks)

    def before_backward(self) -> None:
        """Compare once more. In backward modules may be entered again, in an order of autograd's own."""
        self.enter(_BACKWARD)
        self._looks = False

    def end_window(self) -> None:
        """Stop for good after the first windows."""
        self._windows += 1
        if self._windows >= _WINDOWS:
            self.stop()

    def stop(self) -> None:
        """Compare nothing any more."""
        self._looks = False
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def enter(self, number: int) -> None:
        """Raise `UsageError` on every rank where another enters something else than this one. Collective."""
        if not self._looks or self._collective is None:
            return
        mine = torch.tensor([number], device=self._collective.control_device)
        entered = self._collective.all_gather(mine).view(-1).tolist()
        if len(set(entered)) > 1:
            self.stop()
            raise UsageError(self._told(entered))

    def _told(self, entered: Sequence[int]) -> str:
        what = {number: repr(self._names[number] or "the model") for number in entered if number != _BACKWARD}
        said = [
            f"rank {rank} {f'calls {what[n]}' if n in what else 'begins its backward'}"
            for rank, n in enumerate(entered)
        ]
        return (
            f"the ranks are about to call different modules that fully_shard was called on: {', '.join(said)}. Their "
            "weights are gathered from all ranks when they are called, so every rank has to call the same ones in the "
            "same order in each forward: otherwise parts of different modules are mixed, or ranks wait for each other "
            "until the time-out. Call such a module on every rank (where it has nothing to do, on any batch and times "
            "0), or call fully_shard on the module that holds it and not on itself. Nothing has been stepped."
        )


def _entered(look: SameUnits, number: int, module: nn.Module, args: Any) -> None:
    look.enter(number)
