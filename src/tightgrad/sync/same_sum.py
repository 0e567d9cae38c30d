"""After the last round of a step: have all ranks received the same? One small all-gather, before anything irreversible.

A payload that cannot be decoded is noticed by the rank that received it; one whose values changed on the way, or that
other hardware decodes to other bits, by the norm of the result, which every rank computes anyway.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tightgrad.core.errors import PayloadError, RankMismatchError
from tightgrad.core.protocols import Collective

LARGEST_DIFFERENCE = 1e-5
"""Of two norms, relative to the larger: they may be added up in another order."""


def check_same_sum(failures: Sequence[str], norm: Tensor, collective: Collective) -> None:
    """End the step on every rank unless all received the same. Collective: every rank must call it.

    Args:
        failures: what this rank could not decode.
        norm: of the gradients that this rank received, a scalar.
        collective: the ranks.

    Raises:
        PayloadError: names the ranks that could not decode, and says what this one found.
        RankMismatchError: all could, but the norms differ.
    """
    told = torch.stack([norm.new_tensor(len(failures), dtype=torch.float64), norm.double()])
    failed, norms = collective.all_gather(told.to(collective.control_device)).cpu().unbind(dim=1)
    if bool(failed.any()):
        here = f"Here: {failures[0]}" if failures else "What this rank received was good."
        raise PayloadError(
            f"rank {_listed(failed > 0)} received payloads that cannot be decoded; no rank applies this step. {here}"
        )
    finite = norms.isfinite()
    if not bool(finite.any()):
        return
    reference = norms[finite].max()
    apart = ~finite | ((reference - norms) > LARGEST_DIFFERENCE * reference)
    if bool(apart.any()):
        raise RankMismatchError(
            f"the ranks received different gradients: their norms are {norms.tolist()}, by rank. No rank applies this "
            "step. A payload was changed on its way, or the ranks' hardware or versions compute differently."
        )


def _listed(mask: Tensor) -> str:
    return ", ".join(map(str, mask.nonzero().view(-1).tolist()))
