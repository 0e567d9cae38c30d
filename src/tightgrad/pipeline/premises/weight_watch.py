"""Notices that weights were written in the middle of a window, or by something else than a step."""

import math
import operator
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import repeat
from typing import Any

import torch
from torch import nn, optim
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tightgrad.core.notices import named, warn
from tightgrad.core.placement import local_part
from tightgrad.pipeline.premises.gradient_watch import norms
from tightgrad.pipeline.premises.other_optimizers import within
from tightgrad.pipeline.premises.state_init import is_initialising_state

MOST_NAMED = 5


class WeightWatch:
    """Warns, once, when gradients of one window are taken at different weights, or an optimizer that is not the
    pipeline's has stepped with them.

    torch counts writes into a tensor, but not those through `.data`, of fused optimizers, or of `torch._foreach_*` into
    a DTensor on the CPU; so norms are compared as well in the first window. Weights that were swapped for others and
    put back are told as well: a copy of all values would be needed to see that they are the same. An embedding with
    `max_norm` writes to its weight in every forward, which is its purpose. Between a window's last backward and its
    step a loop may decay weights by hand: there only optimizers are looked at.

    Args:
        parameters: of the model, by name.
        modules: of the model.
        optimizers: of the pipeline.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        modules: Iterable[nn.Module],
        optimizers: Sequence[optim.Optimizer],
    ) -> None:
        self._optimizers = optimizers
        renormed = {id(module.weight) for module in modules if getattr(module, "max_norm", None) is not None}
        self._parameters = {name: p for name, p in parameters.items() if id(p) not in renormed}
        self._versions: list[int] | None = None
        self._norms: list[float] = []
        self._stepped_by = ""
        self._at_step: tuple[list[int], list[tuple[int, int]]] | None = None
        self._has_warned, self._in_first_window = False, True
        _WATCHES.add(self)
        _watch_steps()

    @torch.no_grad()
    def remember(self) -> None:
        """Take the weights as they are after a backward for those of the window."""
        if not self._has_warned:
            self._versions = [parameter._version for parameter in self._parameters.values()]
            self._norms = self._norms_now()

    def forget(self) -> None:
        """Begin a window: before its first backward weights may change."""
        self._in_first_window &= self._versions is None
        self._versions, self._stepped_by = None, ""

    def end_step(self) -> None:
        """Take weights, and what optimizers keep, as they are after a step for the ranks' own."""
        self._at_step = self._held_now()

    @property
    def is_written(self) -> bool:
        """Tell whether something else has written to them since a step: a checkpoint, an edit, averaged weights."""
        if self._at_step is None:
            return False
        (versions, states), (before, states_before) = self._held_now(), self._at_step
        return versions != before or states != states_before

    def _held_now(self) -> tuple[list[int], list[tuple[int, int]]]:
        """How often weights were written; which mappings hold the optimizers' states, which loading replaces while the
        old ones are there. They are not kept alive here.
        """
        states = [getattr(one, "state", None) for one in self._optimizers]
        sized = [(id(one), len(one) if isinstance(one, Mapping) else 0) for one in states]
        return [parameter._version for parameter in self._parameters.values()], sized

    @torch.no_grad()
    def look(self, stacklevel: int) -> None:
        """Warn if weights were written since `remember`."""
        if self._versions is None:
            return
        versions, lengths = [parameter._version for parameter in self._parameters.values()], self._norms_now()
        if versions == self._versions and lengths == self._norms:
            return
        is_written = map(operator.ne, self._versions, versions)
        is_other = map(_differ, self._norms or repeat(0.0), lengths or repeat(0.0))
        written = [name for name, *found in zip(self._parameters, is_written, is_other, strict=False) if any(found)]
        if not written:
            return
        self._has_warned, self._versions = True, None
        warn(
            "weights were written between two backwards of one window: "
            f"{named(written, MOST_NAMED)}. Its gradients belong to different weights, and their sum is not that of "
            "one batch. Usually another optimizer's step() (give all optimizers to attach() in a list), "
            "load_state_dict() or an edit of weights stands inside `for batch in window:`; move it to after "
            "pipe.step(). Only writes are counted, not values: if every weight was put back as it was before the next "
            "backward, as after an evaluation with averaged (EMA) weights, the sum is right; evaluate after "
            "pipe.step(), or ignore this TightGradWarning.",
            stacklevel + 1,
        )

    def look_at_step(self, stacklevel: int) -> None:
        """Warn if another optimizer has stepped since `remember`."""
        if not self._stepped_by or self._has_warned:
            return
        self._has_warned = True
        warn(
            f"an optimizer that attach() was not given has stepped in the middle of a window, {self._stepped_by}. It "
            "used gradients that are not clipped and, on several ranks, may not be summed; pipe.step() now uses them "
            "again, at weights that have changed. Give all optimizers to attach() in a list, and remove their own "
            "step() calls.",
            stacklevel + 1,
        )

    def note_step(self, optimizer: optim.Optimizer) -> None:
        """Take note that an optimizer steps that is none of the pipeline's, and no part of one."""
        if self._versions is not None and is_initialising_state():
            self._versions = None  # until the next backward: weights are written over with what they were
        if self._versions is None or self._stepped_by or any(optimizer is own for own in self._optimizers):
            return
        ours = {id(parameter): name for name, parameter in self._parameters.items()}
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = [ours[id(one)] for one in held if id(one) in ours and one.grad is not None]
        if names and id(optimizer) not in within(self._optimizers):
            self._stepped_by = f"{type(optimizer).__name__} over {named(names, MOST_NAMED)}"

    def _norms_now(self) -> list[float]:
        if not self._in_first_window:
            return []
        return norms([(name, local_part(parameter), 0) for name, parameter in self._parameters.items()])


def _differ(before: float, now: float) -> bool:
    return before != now and not (math.isnan(before) and math.isnan(now))


_WATCHES: "weakref.WeakSet[WeightWatch]" = weakref.WeakSet()


class _StepHook:
    """Runs before every optimizer's step, and reads no gradient, so that a clip factor may be folded into the step."""

    reads_gradients = False

    def __call__(self, optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
        for watch in list(_WATCHES):
            watch.note_step(optimizer)


@cache
def _watch_steps() -> None:
    """Watch the steps of all optimizers, once for all pipelines."""
    register_optimizer_step_pre_hook(_StepHook())
