"""Whether all ranks enter the modules under `fully_shard` in the same order: before each, in the first windows.

FSDP2 gathers a module's weights from all ranks when it is entered. Where ranks enter different ones, torch takes parts
of different modules for one (silently, if they are of one size), aborts the process, or waits until its time-out. In
later windows their order makes a number, which ranks compare in the window after: that tells of what was silent.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from torch import nn

from tightgrad.collectives import TorchCollective
from tightgrad.core.collective import gathered
from tightgrad.core.errors import CommunicationError, UsageError

_WINDOWS = 2
_BACKWARD, _LEFT = -1, -2


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
        self._is_open, self._is_last = False, False
        self._order, self._counting = 0, False
        self._called: int | None = None
        entries = list(enumerate(units.values())) if looks else []
        self._hooks = [
            unit.register_forward_pre_hook(partial(_entered, self, number), prepend=True) for number, unit in entries
        ]

        self._counts = [unit.register_forward_hook(partial(_left, self, number)) for number, unit in entries]

    def begin_window(self) -> None:
        """Take note that others may wait for this rank, until it has told them that its last forward is over."""
        self._is_open = bool(self._hooks)

    def begin(self, *, is_last: bool) -> None:
        """Look from here on: a micro-batch of a window has begun."""
        self._is_last = is_last
        self._looks, self._counting = bool(self._hooks), bool(self._counts)

    def before_backward(self) -> None:
        """Compare once more. In backward modules may be entered again, in an order of autograd's own, and ranks wait in
        FSDP2's collectives: one whose backward raises tells nobody.
        """
        self.enter(_BACKWARD)
        self._looks = self._counting = self._is_open = False

    def after_backward(self) -> None:
        """Look on, since others may wait before the next forward's first module; after the last there is none."""
        self._is_open = self._looks = bool(self._hooks) and not self._is_last

    def leave(self) -> None:
        """Tell ranks that are about to enter a module that this one has left the window, and look no more. Collective,
        as `enter`.
        """
        is_open, self._is_open = self._is_open and bool(self._hooks), False
        self._order, self._counting, self._called = 0, False, None
        if is_open:
            self.stop()
            with suppress(CommunicationError):
                self._entered(_LEFT)

    def end_window(self) -> None:
        """Compare the order of a window's modules later; after the first windows, only so."""
        self._called, self._order = (self._order if self._counts else None), 0
        self._windows += 1
        if self._windows >= _WINDOWS:
            self.stop()

    def count(self, number: int) -> None:
        """Take note that a module was called."""
        if self._counting:
            self._order = hash((self._order, number))

    def take_called(self) -> int | None:
        """Return, once, a hash of what the window before has entered, in its order; None where that is not known."""
        called, self._called = self._called, None
        return called

    def close(self) -> None:
        """Stop comparing, and leave no hook behind."""
        self.stop()
        for hook in self._counts:
            hook.remove()
        self._counts = []

    def stop(self) -> None:
        """Compare nothing before a module is entered any more."""
        self._looks = False
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def enter(self, number: int) -> None:
        """Raise `UsageError` on every rank where another enters something else than this one. Collective."""
        if not self._looks or self._collective is None:
            return
        entered = self._entered(number)
        if len(set(entered)) > 1:
            self.stop()
            raise UsageError(self._told(entered))

    def _entered(self, number: int) -> list[int]:
        assert self._collective is not None
        return [entered for (entered,) in gathered([number], self._collective)]

    def _told(self, entered: Sequence[int]) -> str:
        if _LEFT in entered:
            left = ", ".join(str(rank) for rank, number in enumerate(entered) if number == _LEFT)
            return (
                f"rank {left} has left this window by abandon() in the middle of a forward; see the error there. "
                "Nothing has been stepped. Call pipe.abandon() on every rank to go on with the next window."
            )
        what = {number: repr(self._names[number] or "the model") for number in entered if number != _BACKWARD}
        said = [
            f"rank {rank} {f'calls {what[n]}' if n in what else 'begins its backward'}"
            for rank, n in enumerate(entered)
        ]
        return (
            f"the ranks are about to call different modules that fully_shard was called on: {', '.join(said)}. Their "
            "weights are gathered from all ranks when they are called, so every rank has to call the same ones in the "
            "same order in each forward: otherwise parts of different modules are mixed, or ranks wait for each other "
            "until the time-out. Call such a module on every rank (in an evaluation too; where it has nothing to do, "
            "on any batch and times 0), or call fully_shard on the module that holds it and not on itself. Nothing has "
            "been stepped."
        )


def _entered(look: SameUnits, number: int, module: nn.Module, args: Any) -> None:
    look.enter(number)


def _left(look: SameUnits, number: int, module: nn.Module, args: Any, output: Any) -> None:
    look.count(number)
