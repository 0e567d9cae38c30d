"""Micro-batches that the loop takes out of their window: their weight leaves N, and nothing of their loss enters."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch

from tightgrad.accumulate import Window
from tightgrad.adapters.plain import Adapter
from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.core.types import Grads
from tightgrad.pipeline.parts import Parts
from tightgrad.plan.plan import Resolved
from tightgrad.sync.same_edit import check_same_edit

Weights = Mapping[str, float]
ROUNDING = 1e-9  # of N; what is left of a sum of weights after the same weights were subtracted


class LeftOut:
    """Sums the weights of what this rank has left out of one window.

    Args:
        weights: left out so far, by loss, when a window is taken up again.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self.weights = dict(weights or {})
        self._kept: float | None = None

    def add(self, weights: Weights) -> None:
        """Add one micro-batch to those that are left out."""
        for name, weight in weights.items():
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def agree(self, totals: Weights, plan: Resolved, adapter: Adapter) -> dict[str, float]:
        """Return N without what all ranks have left out. Collective where the plan allows skips: every rank must call
        it.
        """
        left = self.agreed_weight(plan, adapter)
        if not left:
            return dict(totals)
        ((name, total),) = totals.items()
        kept = total - left
        self._kept = (kept if kept > ROUNDING * total else 0.0) / total
        return {name: self._kept * total}

    def agreed_weight(self, plan: Resolved, adapter: Adapter) -> float:
        """Return the weight that all ranks have left out. Collective where the plan allows skips."""
        left = sum(self.weights.values())
        if plan.accumulate.allow_skip and adapter.collective.world_size > 1:
            there = torch.tensor([left], dtype=torch.float64, device="cpu").to(adapter.collective.control_device)
            left = float(adapter.collective.all_reduce_(there, "sum"))
        return left

    def rescale_(self, grads: Grads) -> None:
        """Multiply gradients that were scaled by the N of all, to that of those that were kept: they are linear in
        1 / N.
        """
        if self._kept and grads:
            torch._foreach_mul_(list(grads.values()), 1.0 / self._kept)


def check_can_skip(plan: Resolved, adapter: Adapter, *, commits_in_backward: bool, has_loss: bool) -> None:
    """Raise `UnsupportedError` where what is left out could not be taken back from N, and `UsageError` where the loss
    is needed.
    """
    reason = _obstacle(plan, adapter, commits_in_backward)
    if reason is not None:
        raise UnsupportedError(f"skip() cannot leave a micro-batch out here: {reason}.")
    if adapter.every_rank_runs and not has_loss:
        raise UsageError(
            "under this wrapper the other ranks wait for this micro-batch's backward; write pipe.skip(loss). Nothing "
            "of the loss is added, not even NaN."
        )


def _obstacle(plan: Resolved, adapter: Adapter, commits_in_backward: bool) -> str | None:
    if plan.is_empty:
        return "an empty plan has no windows; take Plan(accumulate=tg.Accumulate(micro_batches=1))"
    if commits_in_backward:
        return (
            "gradients are compressed during backward, already scaled by the N of all micro-batches. Take "
            'Compress(overlap="none") under DistributedDataParallel, or give the micro-batch the weight 0 where the '
            "batch shows it"
        )
    if len(plan.accumulate.losses) > 1:
        return "with several losses there is no one N; give the micro-batch the weight 0 where the batch shows it"
    if plan.noise_scale is not None:
        return "noise_scale needs the gradient of every micro-batch; drop one of them"
    if adapter.collective.world_size > 1 and not plan.accumulate.allow_skip:
        return (
            "the other ranks have to be told how much was left out, once a step; write Accumulate(..., "
            "allow_skip=True) on every rank"
        )
    return None


def tell_others(parts: Parts, window: Window[Any], left_out: LeftOut, why: str) -> bool:
    """Take part in what other ranks wait for at their step, to make it an error there. Collective: every rank must call
    it, or come to its step.

    Args:
        parts: of the pipeline.
        window: that is open.
        left_out: of it.
        why: this rank cannot go on.

    Returns:
        False where nothing was told: ranks wait in a backward for that of this one, or have no such window.
    """
    if (parts.adapter.every_rank_runs and not window.has_run) or not window.batches.is_counted:
        return False
    kept = left_out.agree(window.wait_for_total(), parts.plan, parts.adapter)
    if next(iter(kept.values())):  # else the others have no sum
        parts.sync.fail(why)
        if parts.before_clip is not None and not parts.sync.votes:
            with suppress(UsageError):
                check_same_edit({}, parts.adapter.parameters, why, parts.adapter.collective)
    return True
