"""After the user's `before_clip`: has it run on all ranks, and made the same gradients? One small all-gather."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from tightgrad.core.collective import told
from tightgrad.core.errors import RankMismatchError, UsageError
from tightgrad.core.notices import named
from tightgrad.core.placement import is_dtensor
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads
from tightgrad.sync.same_sum import LARGEST_DIFFERENCE


def check_same_edit(grads: Grads, parameters: Mapping[str, nn.Parameter], why: str, collective: Collective) -> None:
    """Raise on every rank unless all have edited their gradients alike. Collective: every rank must call it.

    Args:
        grads: the edited gradients; shards, which differ over ranks, and sparse ones are not compared.
        parameters: all, in the same order on every rank.
        why: this rank cannot go on; nothing if it can.
        collective: the ranks.

    Raises:
        UsageError: a rank cannot go on.
        RankMismatchError: gradients have other norms on one rank than on the others.
    """
    if collective.world_size == 1:
        return
    dense = {name: grad.detach() for name, grad in grads.items() if grad.layout is torch.strided}
    whole = {name: grad for name, grad in dense.items() if not is_dtensor(parameters[name])}
    row = torch.zeros(1 + len(parameters), dtype=torch.float64, device="cpu")
    row[0] = bool(why)
    if whole:
        norms = torch._foreach_norm(list(whole.values()))
        on_one = torch.stack([norm.to(norms[0].device) for norm in norms]).cpu().double()
        row[[1 + index for index, name in enumerate(parameters) if name in whole]] = on_one
    failures, *columns = collective.all_gather(row.to(collective.control_device)).cpu().t().tolist()
    if any(failures):
        raise UsageError(
            f"another rank has failed in before_clip, or before it ({told(why, collective)}), so no rank applies this "
            "step. No weight was changed. Call pipe.abandon() on every rank to go on with the next window."
        )
    apart = [name for name, found in zip(parameters, columns, strict=True) if not _are_alike(found)]
    if apart:
        raise RankMismatchError(
            f"before_clip has made different gradients on different ranks, of {named(apart)}, so the next step would "
            "make the ranks' weights differ. No rank applies this step. before_clip gets the same summed gradients on "
            "every rank and has to change them alike; if it draws random numbers, seed its generator alike."
        )


def _are_alike(norms: list[float]) -> bool:
    finite = [norm for norm in norms if math.isfinite(norm)]
    return len(finite) in (0, len(norms)) and (
        not finite or max(finite) - min(finite) <= LARGEST_DIFFERENCE * max(finite)
    )
