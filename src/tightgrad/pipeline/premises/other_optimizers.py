"""Notices an optimizer that the loop makes over the same parameters after `attach`, and that nobody would step."""

import gc
import sys
import weakref
from collections.abc import Mapping, Sequence

from torch import nn, optim

from tightgrad.core.notices import warn

_ATTACHED: "weakref.WeakSet[optim.Optimizer]" = weakref.WeakSet()
_SCANS = 4
_FIRST = 2  # windows: losses that the loop keeps, and optimizer state, begin to refer to parameters


class OtherOptimizers:
    """Warns, once, of an optimizer that holds the pipeline's parameters and was not given to it.

    torch tells nobody of a new optimizer, but it refers to its parameters, and Python counts references. Where there
    are more of them than at the window before, objects in memory are looked through, which takes a part of a second: a
    few times at most, and not in the first windows.

    Args:
        optimizers: of the pipeline.
        parameters: that they hold, by name.
        speaks: whether this rank warns.
    """

    def __init__(
        self, optimizers: Sequence[optim.Optimizer], parameters: Mapping[str, nn.Parameter], *, speaks: bool
    ) -> None:
        _ATTACHED.update(optimizers)  # those of a pipeline before may live on
        self._optimizers, self._parameters = optimizers, list(parameters.values())
        self._scans_left, self._windows = _SCANS if speaks else 0, 0
        self._counts = self._counted()

    def look(self, stacklevel: int) -> None:
        """Look again, before a window."""
        if not self._scans_left:
            return
        before, self._counts = self._counts, self._counted()
        self._windows += 1
        grown = [p for p, old, new in zip(self._parameters, before, self._counts, strict=True) if new > old]
        if not grown or self._windows == _FIRST:
            return
        self._scans_left -= 1
        others = self._others(grown)
        if not others:
            return
        self._scans_left = 0
        ours = " and ".join(type(optimizer).__name__ for optimizer in self._optimizers)
        theirs = " and ".join(sorted({type(optimizer).__name__ for optimizer in others}))
        warn(
            f"another optimizer ({theirs}) holds parameters of this pipeline, which goes on stepping the {ours} that "
            "attach() was given: what is set in the other one, or in a scheduler of it, changes nothing. To go on with "
            "it, write pipe = attach(model, optimizer, plan) again after making it, and save what the methods remember "
            "with pipe.state_dict() before. If it is not meant to train these parameters, ignore this.",
            stacklevel + 1,
        )

    def _counted(self) -> list[int]:
        return list(map(sys.getrefcount, self._parameters))

    def _others(self, grown: list[nn.Parameter]) -> list[optim.Optimizer]:
        """Optimizers that hold one of the parameters, without the pipeline's and those that these are made of."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        own = {id(self._parameters), id(grown), *(id(group["params"]) for group in groups)}
        if not any(isinstance(one, list) and id(one) not in own for one in gc.get_referrers(grown[0], grown[-1])):
            return []
        wanted, inner = {id(grown[0]), id(grown[-1])}, _within([*self._optimizers, *_ATTACHED])
        found = [one for one in gc.get_objects() if issubclass(type(one), optim.Optimizer) and id(one) not in inner]
        return [
            one
            for one in found
            if any(
                id(group["params"]) not in own and not wanted.isdisjoint(map(id, group["params"]))
                for group in getattr(one, "param_groups", ())
            )
        ]


def _within(optimizers: Sequence[optim.Optimizer]) -> set[int]:
    """Identities of optimizers, and of what they hold as attributes or in lists and mappings there."""
    held = [value for optimizer in optimizers for value in vars(optimizer).values()]
    members = [one for value in held if isinstance(value, list | tuple) for one in value]
    members += [one for value in held if isinstance(value, dict) for one in value.values()]
    return {id(one) for one in (*optimizers, *held, *members)}
