"""Float32 sums over ranks that are the same to the last bit, however tensors are grouped."""

import torch
from torch import Tensor

from tightgrad.core.protocols import Collective


def sum_over_ranks(flat: Tensor, collective: Collective) -> Tensor:
    """Sum a 1-D tensor over ranks into a new one, bitwise equal on all ranks. Collective: every rank must call it.

    Each element is added in rank order, by the owner of its chunk. A ring all-reduce sends as many bytes, but its order
    depends on where in the buffer an element lies; with two ranks there is only one order, and it is used.
    """
    world_size, numel = collective.world_size, flat.numel()
    if not numel:
        return flat.clone()
    if world_size <= 2:
        return collective.all_reduce_(flat.clone())
    longest = -(-numel // world_size)
    sizes = [min(numel, longest * (rank + 1)) - min(numel, longest * rank) for rank in range(world_size)]
    received = collective.all_to_all(list(flat.split(sizes)), [sizes[collective.rank]] * world_size)
    total = received[0].clone()
    for chunk in received[1:]:
        total.add_(chunk)
    padded = torch.nn.functional.pad(total, (0, longest - total.numel()))
    return torch.cat([row[:size] for row, size in zip(collective.all_gather(padded), sizes, strict=True)])
