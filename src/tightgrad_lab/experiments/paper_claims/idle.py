"""How long ranks wait for the slowest at a synchronisation, when their micro-batches differ in length.

The micro-batches of all ranks run one after the other in one process, and each one's processor time is taken. What a
rank takes for a window is the sum over its micro-batches; at the synchronisation all wait for the largest sum.
"""

import time

import torch

from tightgrad_lab.common import byte_model, verse

LINES = 4
"""Lines of text of a micro-batch."""
WIDTH, LAYERS = 64, 2


def seconds(ranks: int, rounds: int) -> list[list[float]]:
    """Return the seconds of each micro-batch's forward and backward pass, by rank."""
    torch.manual_seed(0)
    model = byte_model.ByteTransformer(WIDTH, LAYERS)
    generator = torch.Generator().manual_seed(0)
    batches = [[verse.batch(LINES, generator) for _ in range(rounds)] for _ in range(ranks)]
    verse.loss(model, batches[0][0]).backward()  # the first one pays for what is set up once
    return [[_seconds(model, pieces) for pieces in own] for own in batches]


def _seconds(model: torch.nn.Module, pieces: torch.Tensor) -> float:
    started = time.process_time()
    verse.loss(model, pieces).backward()
    return time.process_time() - started


def idle_share(taken: list[list[float]], micro_batches: int) -> float:
    """Return the share of all ranks' time that is waiting, with so many micro-batches between two synchronisations.

    Examples:
        >>> idle_share([[1.0, 3.0], [3.0, 1.0]], 1), idle_share([[1.0, 3.0], [3.0, 1.0]], 2)
        (0.3333333333333333, 0.0)
    """
    worked = waited = 0.0
    for begin in range(0, len(taken[0]) - micro_batches + 1, micro_batches):
        sums = [sum(own[begin : begin + micro_batches]) for own in taken]
        worked += sum(sums)
        waited += max(sums) * len(sums) - sum(sums)
    return waited / (worked + waited)
