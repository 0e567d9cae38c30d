"""What the optimizer would have taken if a known mistake had been made: whole gradients, before any clipping.

A candidate is a base (how micro-batches and ranks were put together) times a factor (what was multiplied or divided
once too often).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightgrad_lab.audit.reference import MicroBatch

MicroBatches = Sequence[Sequence[MicroBatch]]
"""Rank -> micro-batch of the window."""


@dataclass(frozen=True)
class Window:
    """What one rank's optimizer took in one window, and what it could have been made of.

    Args:
        micro_batches: of all ranks.
        rank: whose.
        size: K of a whole window.
        taken: the gradient that the optimizer took.
        before: what it took in the window before; None in the first.
    """

    micro_batches: MicroBatches
    rank: int
    size: int
    taken: Tensor
    before: Tensor | None

    @property
    def ranks(self) -> int:
        return len(self.micro_batches)

    @property
    def length(self) -> int:
        """Micro-batches in this window: less than `size` if it is the last one."""
        return len(self.micro_batches[self.rank])


def exact(ranks: MicroBatches) -> Tensor:
    """The gradient of one big batch."""
    everything = [micro for rank in ranks for micro in rank]
    return _weighted(everything)


def shares(ranks: MicroBatches) -> list[list[Tensor]]:
    """What each micro-batch adds, such that the mean over ranks of each rank's sum is the exact gradient."""
    weight = sum(micro.weight for rank in ranks for micro in rank) or 1.0
    return [[micro.gradient * (len(ranks) * micro.weight / weight) for micro in rank] for rank in ranks]


def bases(window: Window) -> Iterator[tuple[str, Tensor]]:
    """Ways to put a window together, the plainest first."""
    ranks, own = window.micro_batches, window.micro_batches[window.rank]
    yield "exact", exact(ranks)
    yield "micro means", _mean([micro.gradient for rank in ranks for micro in rank])
    yield "rank means", _mean([_weighted(rank) for rank in ranks])
    yield "means over ranks", _mean([_weighted(column) for column in zip(*ranks, strict=True)])
    if window.length > 1:
        yield "last only", _weighted([rank[-1] for rank in ranks])
        yield "last only, mean", _mean([rank[-1].gradient for rank in ranks])
    if len(ranks) > 1:
        yield "local", _weighted(own)
        yield "local micro means", _mean([micro.gradient for micro in own])
        total = sum(micro.weight for rank in ranks for micro in rank)
        own_weight = sum(micro.weight for micro in own)
        if total:
            yield "local over all weights", _weighted(own) * (own_weight / total)
        if window.length > 1:
            yield "local last only", own[-1].gradient
            for name, parts in (("", shares(ranks)), (", mean", _mean_shares(ranks))):
                yield f"only last synced{name}", sum(parts[window.rank][:-1]) + _mean([part[-1] for part in parts])


def factors(window: Window) -> dict[str, float]:
    """What can have been multiplied once too often, by name; the plainest first."""
    size, length, ranks = window.size, window.length, window.ranks
    by_ranks = {"1": 1.0} | ({"W": float(ranks), "1/W": 1 / ranks} if ranks > 1 else {})
    by_size = {"1": 1.0}
    if size > 1:
        by_size |= {"K_t": float(length), "1/K_t": 1 / length, "K": float(size), "1/K": 1 / size}
        by_size |= {"K_t/K": length / size, "K/K_t": size / length}
    weight = sum(micro.weight for rank in window.micro_batches for micro in rank)
    own = sum(micro.weight for micro in window.micro_batches[window.rank])
    found: dict[str, float] = {}
    for first, a in by_ranks.items():
        for second, b in by_size.items():
            name = " * ".join(part for part in (first, second) if part != "1") or "1"
            found.setdefault(name, a * b)
    found |= {"N": weight, "N / W": weight / ranks}
    if ranks > 1:
        found |= {"N_r": own}
    if size > 1:
        found |= {"N / K": weight / size, "N / W / K": weight / ranks / size}
    return found


def _mean_shares(ranks: MicroBatches) -> list[list[Tensor]]:
    return [[micro.gradient / len(rank) for micro in rank] for rank in ranks]


def _weighted(micro_batches: Sequence[MicroBatch]) -> Tensor:
    weight = sum(micro.weight for micro in micro_batches) or 1.0
    return torch.stack([micro.gradient * (micro.weight / weight) for micro in micro_batches]).sum(dim=0)


def _mean(gradients: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(gradients)).mean(dim=0)
