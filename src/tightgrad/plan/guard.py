"""The vote: one small all-reduce that tells every rank what any rank has seen, before anything irreversible."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightgrad.clip.dtensor import zero_nonfinite_
from tightgrad.clip.norm_history import history_slots, known_norms, with_norm
from tightgrad.core.check import check_choice, check_integer, check_number
from tightgrad.core.collective import NOTHING, largest_over_ranks, told
from tightgrad.core.errors import NonFiniteGradientError, UsageError
from tightgrad.core.protocols import Collective, GradNorm
from tightgrad.core.types import Grads, Slot, State

POLICIES = ("raise", "skip", "zero", "propagate")
MOST_NAMED = 5

FEWEST_NORMS = 10
"""The median and the deviation of fewer norms say little: until then only the fixed bound holds."""

LEAST_DEVIATION = 0.01
"""Of the mean. Norms that hardly differ would make a spike of every rounding error."""


@dataclass(frozen=True)
class Guard:
    """Says what happens when any rank's gradient holds inf or NaN, or the sum over ranks is a spike.

    A step whose gradient is above any `skip_above...` is left out on all ranks, with a warning that names the
    parameters with the largest gradients: weights, optimizer, residuals and bounds stay as if the window had not been.

    Args:
        on_nonfinite: "raise" names the parameters and ranks; "skip" leaves everything as it was before the window;
            "zero" sets the entries that are not finite to 0, on each rank before it sends them and in the sum, and
            takes the step; "propagate" does not look, as plain PyTorch.
        max_consecutive_skips: how many steps in a row may be skipped before it raises, at least 1.
        compare_every: every that many steps, ranks compare fingerprints of the delivered gradients and the weights,
            and a difference is an error on all of them before the step is applied; 0 never does.
        skip_above: leaves a step out if the gradient's norm, before clipping, is above it, above 0; None does not.
        skip_above_median: the same, as a multiple of the median norm of the last `history` applied steps, above 1; it
            holds from the tenth on.
        skip_above_zscore: the same, in standard deviations above their mean, above 0. A deviation of less than 1 % of
            the mean counts as 1 %.
        history: how many applied steps these two look back on, at least 10.

    Examples:
        >>> import torch, tightgrad as tg
        >>> plan = tg.Plan(guard=tg.Guard(on_nonfinite="skip", skip_above_median=10.0))
        >>> tg.Plan.from_json(plan.to_json()) == plan
        True
    """

    on_nonfinite: str = "raise"
    max_consecutive_skips: int = 10
    compare_every: int = 0
    skip_above: float | None = None
    skip_above_median: float | None = None
    skip_above_zscore: float | None = None
    history: int = 100

    def __post_init__(self) -> None:
        check_choice("on_nonfinite", self.on_nonfinite, POLICIES)
        check_integer("max_consecutive_skips", self.max_consecutive_skips, low=1)
        check_integer("compare_every", self.compare_every, low=0)
        check_integer("history", self.history, low=FEWEST_NORMS)
        for name, least in (("skip_above", 0.0), ("skip_above_median", 1.0), ("skip_above_zscore", 0.0)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=least)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Return what is remembered of the norms; nothing where no bound asks for it."""
        return () if self.skip_above_median is None and self.skip_above_zscore is None else self._history

    @property
    def _history(self) -> tuple[Slot, Slot]:
        return history_slots("guard", self.history)

    @property
    def looks_for_spikes(self) -> bool:
        """Tell whether any bound on the norm is set."""
        return self.skip_above is not None or bool(self.slots)

    def spike(self, norm: Tensor, state: State) -> str | None:
        """Say which bound a norm is above; None if it is above none.

        Args:
            norm: scalar, of the sum over ranks.
            state: what was remembered of earlier norms.
        """
        return spike(float(norm), known_norms(self._history, state), self)

    def remembered(self, norm: Tensor, state: State) -> State:
        """Return what is remembered once a step with this norm has been applied."""
        return with_norm(self._history, state, norm) if self.slots else {}

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


def spike(norm: float, known: Tensor, guard: Guard) -> str | None:
    """Say which bound of the guard a norm is above; None if it is above none.

    Args:
        norm: of the gradient that would be applied.
        known: norms of the last applied steps, one dimension.
        guard: with its bounds.
    """
    bounds = {} if guard.skip_above is None else {f"{guard.skip_above:g}": guard.skip_above}
    if known.numel() >= FEWEST_NORMS and guard.skip_above_median is not None:
        median = float(known.median())
        words = f"{guard.skip_above_median:g} times the median of the last {known.numel()} steps ({median:.4g})"
        bounds[words] = guard.skip_above_median * median
    if known.numel() >= FEWEST_NORMS and guard.skip_above_zscore is not None:
        mean = float(known.mean())
        deviation = max(float(known.std()), LEAST_DEVIATION * mean)
        words = f"{guard.skip_above_zscore:g} standard deviations above the mean of the last {known.numel()} steps"
        bounds[f"{words} ({mean:.4g}, deviation {deviation:.4g})"] = mean + guard.skip_above_zscore * deviation
    return next((words for words, bound in bounds.items() if norm > bound), None)


@dataclass(frozen=True, slots=True)
class Vote:
    """What the ranks agreed on: whether all gradients are finite, and which parameters any rank used."""

    finite: bool
    used: frozenset[str]


_FAILED = 2


def vote(used: Collection[str], names: Sequence[str], finite: bool, collective: Collective) -> Vote:
    """Agree over ranks. Collective: every rank must call it, or `vote_failure`.

    Args:
        used: names of the parameters that this rank has used.
        names: of all parameters, in the same order on every rank.
        finite: whether this rank's gradients are.
        collective: the ranks.

    Raises:
        UsageError: another rank has called `vote_failure`.
    """
    if collective.world_size == 1:  # without operators, which are slow right after a backward
        return Vote(finite, frozenset(used))
    not_finite, *anywhere = largest_over_ranks([not finite, *(name in used for name in names)], collective)
    if not_finite == _FAILED:
        raise UsageError(
            f"another rank has failed before this step ({told(NOTHING, collective)}); rank {collective.rank} stops as "
            "well. No weight was changed. Call pipe.abandon() on every rank to go on with the next window."
        )
    return Vote(not not_finite, frozenset(name for name, flag in zip(names, anywhere, strict=True) if flag))


def vote_failure(names: Sequence[str], collective: Collective, why: str) -> None:
    """Take part in a vote only to make it an error on the other ranks. Collective: every rank must call it, or `vote`.

    Args:
        names: as in `vote`.
        collective: the ranks.
        why: what the other ranks are told.
    """
    if collective.world_size > 1:
        largest_over_ranks([_FAILED, *(0 for _ in names)], collective)
        told(why, collective)


def agreed_on_any(flag: bool, collective: Collective) -> bool:
    """Tell whether the flag is set on any rank. Collective: every rank must call it."""
    return flag if collective.world_size == 1 else bool(*largest_over_ranks([flag], collective))


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
    counts = torch.tensor([here.get(name, 0) for name in names], dtype=torch.int64, device="cpu")
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
