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
