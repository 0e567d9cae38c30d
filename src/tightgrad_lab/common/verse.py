"""Lines of Shakespeare's plays, one a sample: micro-batches that differ in how many bytes they predict.

Pairs 3, 4 and 10 accumulate their gradients. A line is predicted byte by byte; padding counts nowhere.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from tightgrad_lab.common import byte_model

PAD = 0
NEWLINE = 10
SHORTEST = 2


@cache
def lines() -> list[Tensor]:
    """All lines of at least two bytes, cut to CONTEXT + 1."""
    text = byte_model.plays()
    ends = (text == NEWLINE).nonzero().view(-1).tolist()
    starts = [0, *(end + 1 for end in ends)]
    pieces = [text[start:end][: byte_model.CONTEXT + 1] for start, end in zip(starts, [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if len(piece) >= SHORTEST]


def batch(size: int, generator: torch.Generator) -> Tensor:
    """Random lines, padded to the longest: int64, shape (size, length + 1)."""
    found = lines()
    picked = [found[int(i)] for i in torch.randint(len(found), (size,), generator=generator)]
    return nn.utils.rnn.pad_sequence(picked, batch_first=True, padding_value=PAD)


def weight(pieces: Tensor) -> Tensor:
    """Bytes that are predicted."""
    return (pieces[:, 1:] != PAD).sum()


def loss(model: nn.Module, pieces: Tensor) -> Tensor:
    """Mean cross entropy over those bytes, in nats."""
    scores = model(pieces[:, :-1]).flatten(0, 1)
    return functional.cross_entropy(scores, pieces[:, 1:].flatten(), ignore_index=PAD)


def gradient(model: nn.Module, batches: list[Tensor]) -> Tensor:
    """The gradient of the mean over all bytes of all batches, one dimension, in the model's dtype: the target."""
    total = sum(int(weight(pieces)) for pieces in batches)
    model.zero_grad()
    for pieces in batches:
        (loss(model, pieces) * (int(weight(pieces)) / total)).backward()
    return flat_gradient(model)


def flat_gradient(model: nn.Module) -> Tensor:
    """All gradients as one tensor."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
