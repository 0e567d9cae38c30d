"""Notices an optimizer that the loop makes over the same parameters after `attach`, and that nobody would step."""

import sys
import weakref
from collections.abc import Mapping, Sequence

from torch import nn, optim
from torch.autograd.graph import get_gradient_edge

from tightgrad.core.living import instances
from tightgrad.core.notices import warn

_ATTACHED: "weakref.WeakSet[optim.Optimizer]" = weakref.WeakSet()
_SCANS = 4
_FIRST = 2  # windows, before the second of which the first one's graph has begun to refer to parameters


class OtherOptimizers:
    """Warns, once, of an optimizer that holds the pipeline's parameters and was not given to it.

    torch tells nobody of a new optimizer, but it refers to its parameters, and Python counts references. Where there
    are more of them than at the window before, objects in memory are looked through, which takes a part of a second: a
    few times at most.

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
        self._counts = self._counted(at_first=True)

    def look(self, stacklevel: int) -> None:
        """Look again, before a window."""
        if not self._scans_left:
            return
        self._windows += 1
        before, now = self._counts, self._counted(at_first=self._windows <= _FIRST)
        self._counts = self._counted() if self._windows == _FIRST else now
        grown = [p for p, old, new in zip(self._parameters, before, now, strict=True) if new > old]
        if not grown:
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

    def _counted(self, *, at_first: bool = False) -> list[int]:
        """References to each parameter; at first with that of a graph, which begins with the first forward, and without
        that of the optimizer's state, which begins with the first step.
        """
        if not at_first:
            return list(map(sys.getrefcount, self._parameters))
        states = [getattr(optimizer, "state", ()) for optimizer in self._optimizers]
        edges = [get_gradient_edge(parameter) for parameter in self._parameters if parameter.requires_grad]
        counts = [sys.getrefcount(p) - sum(p in state for state in states) for p in self._parameters]
        del edges
        return counts

    def _others(self, grown: list[nn.Parameter]) -> list[optim.Optimizer]:
        """Optimizers that hold one of the parameters, without the pipeline's and those that these are made of."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        own = {id(group["params"]) for group in groups}
        wanted, inner = {id(grown[0]), id(grown[-1])}, within([*self._optimizers, *_ATTACHED])
        found = [one for one in instances(optim.Optimizer) if id(one) not in inner]
        return [
            one
            for one in found
            if any(
                id(group["params"]) not in own and not wanted.isdisjoint(map(id, group["params"]))
                for group in getattr(one, "param_groups", ())
            )
        ]


def within(optimizers: Sequence[optim.Optimizer]) -> set[int]:
    """Return the identities of optimizers, and of what they hold as attributes or in lists and mappings there."""
    held = [value for optimizer in optimizers for value in vars(optimizer).values()]
    members = [one for value in held if isinstance(value, list | tuple) for one in value]
    members += [one for value in held if isinstance(value, dict) for one in value.values()]
    return {id(one) for one in (*optimizers, *held, *members)}
