"""Notices that someone else has changed a gradient in the middle of a window.

After each of the pipeline's backwards every gradient is remembered: which tensor it is, and torch's counter of writes
into it. Before the next backward, the step or a checkpoint all are looked at again. That reads no gradient and does not
wait for the device. torch does not count all writes: not those through `.grad.data`, a numpy view of a gradient or a
kernel of one's own, nor those of `torch._foreach_*` into a DTensor on the CPU. So norms are compared as well, in the
first window, and in all of them where a wrapper says that counters are not enough. What leaves a gradient's norm as it
is, and what is not counted and begins after the first window, is not seen.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import TypeAlias

import torch
from torch import Tensor

from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.adapters.plain import Adapter
from tightgrad.core.errors import UsageError
from tightgrad.core.notices import named
from tightgrad.core.placement import is_dtensor

CLEARED, REPLACED, WRITTEN, APPEARED = "cleared", "replaced by another tensor", "written in place", "new"
_SAME_NORM = 1e-5  # the sum of a gradient that was moved may be taken in another order

Changes: TypeAlias = Mapping[str, Sequence[str]]
"""Names of gradients, by what happened to them."""

Place: TypeAlias = tuple[str, Tensor | None, int]
"""Name of a parameter, its gradient, and how often that has been written."""


class GradientWatch:
    """Remembers the gradients between two calls of the pipeline.

    Args:
        adapter: knows where they are.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._before: list[Place] | None = None
        self._norms: list[float] | None = None
        self._is_moved = False
        self._in_first_window = True
        self._has_seen = False

    @torch.no_grad()
    def remember(self) -> None:
        """Take the gradients as they are now for the pipeline's own."""
        self._before = places(self._adapter)
        self._is_moved = self._adapter.moves_gradients
        reads = self._in_first_window or self._is_moved or not self._adapter.counts_writes
        self._norms = norms(self._before) if reads else None
        self._has_seen |= any(grad is not None for _, grad, _ in self._before)

    def forget(self) -> None:
        """Stop watching, and hold no gradient any longer: a backward may free it."""
        self._before = self._norms = None

    def end_window(self) -> None:
        """Forget, and look at counters only from now on."""
        self.forget()
        self._in_first_window &= not self._has_seen

    @torch.no_grad()
    def changes(self) -> Changes:
        """Return what changed since `remember`; nothing if it was not called."""
        if self._before is None:
            return {}
        now = places(self._adapter)
        if self._norms is None:
            return changes(self._before, now, repeat(True), is_moved=self._is_moved)
        is_same = map(_is_same_norm, self._norms, norms(now))
        return changes(self._before, now, is_same, is_moved=self._is_moved)


def places(adapter: Adapter) -> list[Place]:
    """Return all places as they are now."""
    return [(name, grad, -1 if grad is None else grad._version) for name, grad in adapter.gradients()]


def norms(now: Sequence[Place]) -> list[float]:
    """Return the 2-norm of each gradient; 0 where there is none, or it would take communication or another layout."""
    readable = [grad is not None and not is_dtensor(grad) and grad.layout is torch.strided for _, grad, _ in now]
    found = [_norm(grad) for (_, grad, _), reads in zip(now, readable, strict=True) if reads and grad is not None]
    if not found:
        return [0.0] * len(now)
    device = found[0].device  # one wait for all of one device
    values = iter(torch.stack([norm.double().to(device) for norm in found]).tolist())
    return [next(values) if reads else 0.0 for reads in readable]


def _norm(grad: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(grad, dtype=torch.float32 if grad.dtype in LOW_PRECISION else None)
    return norm


def _is_same_norm(before: float, now: float) -> bool:
    return math.isclose(before, now, rel_tol=_SAME_NORM) or (math.isnan(before) and math.isnan(now))


def changes(before: Iterable[Place], now: Iterable[Place], is_same: Iterable[bool], *, is_moved: bool) -> Changes:
    """Compare which tensors there are, and how often they were written.

    Args:
        before: as they were left.
        now: as they are.
        is_same: for each, whether its values are, as far as is known.
        is_moved: whether the wrapper may have put them elsewhere, so that only their values tell.
    """
    found: dict[str, list[str]] = {}
    for (name, old, old_version), (_, new, version), same in zip(before, now, is_same, strict=False):
        is_counted = not is_moved and (old is not new or old_version != version)
        if (old is None) is not (new is None) or not same or is_counted:
            found.setdefault(_kind(old, new), []).append(name)
    return found


def _kind(old: Tensor | None, new: Tensor | None) -> str:
    if old is None:
        return APPEARED
    if new is None:
        return CLEARED
    return WRITTEN if old is new else REPLACED


_EDIT = (
    "attach(..., before_clip=edit), which is called once a step with the whole window's gradients (TightAccelerator "
    "and TightTrainer take it too; in Lightning it is on_before_optimizer_step). A "
    "parameter.register_hook gets each micro-batch's gradient, scaled by its weight and the loss scale: it is right "
    "only for a fixed factor or mask, not for a clip, noise or weight decay"
)

_OTHER_BACKWARD = (
    "a backward other than pipe.backward() (write pipe.backward(loss) for loss.backward(); give another loss a window "
    "of its own, or call requires_grad_(False) on these parameters meanwhile; for gradients of inputs take "
    "torch.autograd.grad)"
)


def foreign_change(found: Changes, another_pipeline: Callable[[], bool]) -> UsageError:
    """Say what happened to which gradients, what usually does that, and what to write instead.

    Args:
        found: not empty; from `GradientWatch.changes`.
        another_pipeline: whether another pipeline's backward has run since.
    """
    seen = "; ".join(f"{named(dict.fromkeys(names))} ({kind})" for kind, names in found.items())
    added = WRITTEN in found or APPEARED in found
    if added and another_pipeline():
        cause = (
            "The backward of another TightGrad pipeline has run since, and its loss went through these parameters too, "
            "as a generator's goes through its discriminator. Give each model a window of its own (finish this one "
            "with pipe.step() before the other model's backward), or call requires_grad_(False) on this model around "
            "the other's forward and backward, and requires_grad_(True) afterwards"
        )
    elif CLEARED in found or REPLACED in found:
        cause = (
            "Usually a zero_grad() was left in the loop: remove it, pipe.step() clears the gradients. To edit "
            f"gradients on purpose, write {_EDIT}"
        )
    elif WRITTEN not in found:
        cause = f"Usually this is {_OTHER_BACKWARD}"
    else:
        cause = (
            "Usually one of these was left in the loop: clip_grad_norm_ or clip_grad_value_ (put the clip into the "
            "plan: Plan(clip=tg.clip.GlobalNorm(max_norm)) or tg.clip.Value(max_value)); "
            "zero_grad(set_to_none=False) (remove it, pipe.step() clears the gradients); scaler.unscale_ (use "
            f"attach(..., scaler=scaler)); {_OTHER_BACKWARD}; an edit (write {_EDIT})"
        )
    return UsageError(
        f"gradients were changed from outside in the middle of a window: {seen}. Until pipe.step() only the pipeline "
        f"may write, clear or replace .grad, or the step would be wrong. {cause}. This window cannot be finished: call "
        "pipe.abandon() to go on with the next one."
    )
