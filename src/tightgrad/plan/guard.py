"""The vote: one small all-reduce that tells every rank what any rank has seen, before anything irreversible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tightgrad.clip.placed import zero_nonfinite_
from tightgrad.core.check import check_choice, check_integer
from tightgrad.core.errors import NonFiniteGradientError, UsageError
from tightgrad.core.protocols import Collective, GradNorm
from tightgrad.core.types import Grads

POLICIES = ("raise", "skip", "zero", "propagate")
MOST_NAMED = 5


@dataclass(frozen=True)
class Guard:
    """Says what happens when any rank's gradient holds inf or NaN.

    Args:
        on_nonfinite: "raise" names the parameters and ranks; "skip" leaves everything as it was before the window;
            "zero" sets the entries that are not finite to 0, on each rank before it sends them and in the sum, and
            takes the step; "propagate" does not look, as plain PyTorch.
        max_consecutive_skips: with "skip", how many steps in a row may be skipped before it raises, at least 1.
        compare_every: every that many steps, ranks compare fingerprints of the delivered gradients and the weights,
            and a difference is an error on all of them before the step is applied; 0 never does.
    """

    on_nonfinite: str = "raise"
    max_consecutive_skips: int = 10
    compare_every: int = 0

    def __post_init__(self) -> None:
        check_choice("on_nonfinite", self.on_nonfinite, POLICIES)
        check_integer("max_consecutive_skips", self.max_consecutive_skips, low=1)
        check_integer("compare_every", self.compare_every, low=0)

    def admits_(self, grads: Grads, norm: GradNorm, largest: float) -> bool:
        """Tell whether gradients may go on; "zero" makes them so. Collective where they are sharded.

        Args:
            grads: one rank's gradients, or their sums over ranks.
            norm: computes their norm.
            largest: the largest norm that passes.
        """
        if self.on_nonfinite == "propagate" or float(norm(list(grads.values()))) <= largest:
            return True
        if self.on_nonfinite == "zero":
            zero_nonfinite_(grads.values())
        return self.on_nonfinite == "zero"


@dataclass(frozen=True, slots=True)
class Vote:
    """What the ranks agreed on: whether all gradients are finite, and which parameters any rank used."""

    finite: bool
    used: frozenset[str]


_FAILED = 2


def vote(grads: Grads, names: Sequence[str], finite: bool, collective: Collective) -> Vote:
    """Agree over ranks. Collective: every rank must call it, or `vote_failure`.

    Raises:
        UsageError: another rank has called `vote_failure`.
    """
    if collective.world_size == 1:  # without operators, which are slow right after a backward
        return Vote(finite, frozenset(grads))
    flags = torch.tensor([not finite, *(name in grads for name in names)], dtype=torch.int32)
    not_finite, *used = collective.all_reduce_(flags.to(collective.control_device), "max").tolist()
    if not_finite == _FAILED:
        raise UsageError(
            f"another rank has failed before this step and says why; rank {collective.rank} stops as well. No weight "
            "was changed. Call pipe.abandon() on every rank to go on with the next window."
        )
    return Vote(not not_finite, frozenset(name for name, flag in zip(names, used, strict=True) if flag))


def vote_failure(names: Sequence[str], collective: Collective) -> None:
    """Take part in a vote only to make it an error on the other ranks. Collective: every rank must call it, or `vote`.

    Args:
        names: as in `vote`.
        collective: the ranks.
    """
    if collective.world_size > 1:
        flags = torch.tensor([_FAILED, *(0 for _ in names)], dtype=torch.int32)
        collective.all_reduce_(flags.to(collective.control_device), "max")


def nonfinite_counts(grads: Grads) -> dict[str, int]:
    """Count the entries of each gradient that are inf or NaN."""
    return {name: int((~torch.isfinite(grad)).sum()) for name, grad in grads.items()}


def nonfinite_error(here: Mapping[str, int], names: Sequence[str], collective: Collective) -> NonFiniteGradientError:
    """Say which parameters on which ranks hold inf or NaN. Collective: every rank must call it.

    Args:
        here: number of such entries in this rank's gradients, by name.
        names: all parameters, in the same order on every rank.
        collective: the ranks.
    """
    counts = torch.tensor([here.get(name, 0) for name in names], dtype=torch.int64)
    table = collective.all_gather(counts.to(collective.control_device)).cpu()
    worst = table.sum(dim=0).argsort(descending=True).tolist()
    named = [
        f"{names[index]} ({int(table[:, index].sum())} entries on rank "
        f"{', '.join(str(rank) for rank in table[:, index].nonzero().view(-1).tolist())})"
        for index in worst[:MOST_NAMED]
        if table[:, index].any()
    ]
    if not named:
        return NonFiniteGradientError(
            "all gradients are finite but their norm is above the largest that is taken: 3.4e38, the largest float32 "
            "number, where gradients are compressed, and 1.8e308 elsewhere. Lower the learning rate or the loss; "
            'Guard(on_nonfinite="skip") leaves such steps out.'
        )
    affected = int(table.any(dim=0).sum())
    more = f" and {affected - len(named)} more" if affected > len(named) else ""
    return NonFiniteGradientError(
        f"inf or NaN in the gradient of {'; '.join(named)}{more}. Lower the learning rate, clip, or look at the loss "
        'of these batches; Guard(on_nonfinite="skip") leaves such steps out.'
    )
