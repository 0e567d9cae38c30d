"""Who sees which sample when: the same samples in the same step, however many ranks and micro-batches there are."""

import torch
from torch import Tensor

SEEDS_APART = 1_000_003


def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The samples in the order of one epoch."""
    generator = torch.Generator().manual_seed(seed * SEEDS_APART + epoch)
    return torch.randperm(num_samples, generator=generator)


def rank_batches(order: Tensor, rank: int, ranks: int, batch_size: int) -> list[Tensor]:
    """Indices of this rank's batches of `batch_size` samples; the last may be smaller.

    Samples are dealt out in turn, so `ranks` batches side by side hold the next `ranks * batch_size` of the order.
    """
    return list(order[rank::ranks].split(batch_size))


def by_length(order: Tensor, lengths: Tensor, batch_size: int, pool: int = 16) -> Tensor:
    """Rearrange an epoch's order so that the samples of a step are of similar length, and padding is rare.

    Each `pool` steps' samples are sorted by length and cut into steps, which come in the order of their first sample in
    `order`. A last incomplete step stays the last.

    Args:
        order: permutation of the samples, int64, shape (n,).
        lengths: of the samples, int64, shape (n,).
        batch_size: samples of a step, over all ranks.
        pool: steps that are sorted together.
    """
    whole = len(order) // batch_size * batch_size
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    batches: list[Tensor] = []
    for samples in order[:whole].split(pool * batch_size):
        batches += samples[lengths[samples].argsort(stable=True)].split(batch_size)
    batches.sort(key=lambda batch: int(place[batch].min()))
    return torch.cat([*batches, order[whole:]])
