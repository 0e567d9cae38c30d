"""Is the loss a weighted mean of per-sample terms? Looked at before a batch is split without being asked to.

    L(piece) n = L(first half) n1 + L(second half) n2          for means; without n, n1, n2 for sums

Forwards only, without gradients. Buffers, training modes and random numbers are as before.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tightgrad.accumulate.split import split_batch
from tightgrad.accumulate.weights import num_samples

TOLERANCE = 0.01
ROUNDINGS = 8  # of the loss's own dtype, where that is coarser than the tolerance

Losses = Callable[[Any], Mapping[str, Tensor]]
Weigh = Callable[[Any], Mapping[str, float]]


def difference(piece: Any, losses_of: Losses, weigh: Weigh, model: nn.Module, *, is_mean: bool) -> str | None:
    """Compare the loss of a piece with the losses of its halves.

    Args:
        piece: of at least two samples.
        losses_of: the forward; gives scalars by name.
        weigh: what a piece counts for each loss.
        model: that the forward runs; its buffers and modes are put back.
        is_mean: whether losses are means over their weight, and not sums.

    Returns:
        What differs, in words; None if nothing does.

    Raises:
        RandomLossError: two forwards of the same piece differ, also in evaluation mode.
    """
    with _left_as_it_was(model):
        if _is_random(piece, losses_of):
            model.eval()
            if _is_random(piece, losses_of):
                raise RandomLossError
        halves = split_batch(piece, 2)
        whole = _terms(piece, losses_of, weigh, is_mean=is_mean)
        parts = [_terms(half, losses_of, weigh, is_mean=is_mean) for half in halves]
    for name, (loss, weight, eps) in whole.items():
        sums = [part[name][0] for part in parts]
        scale = max(abs(loss), sum(map(abs, sums)))
        if weight and abs(loss - sum(sums)) > max(TOLERANCE, ROUNDINGS * eps) * scale + 1e-6:
            count = num_samples(piece)
            return (
                f"{name} of {count} samples is {loss / weight:.4g}, and {sum(sums) / weight:.4g} computed from its two "
                "halves"
            )
    return None


class RandomLossError(Exception):
    """The loss cannot be compared, since it differs from one forward to the next."""


def _terms(batch: Any, losses_of: Losses, weigh: Weigh, *, is_mean: bool) -> dict[str, tuple[float, float, float]]:
    """For each loss the sum over its samples, what it is divided by for people to read, and its rounding."""
    weights = weigh(batch)
    terms = {}
    for name, loss in losses_of(batch).items():
        eps = torch.finfo(loss.dtype).eps if loss.is_floating_point() else 0.0
        value = float(loss)
        # A mean over nothing is NaN, and counts nothing.
        total = value * weights[name] if is_mean and weights[name] else 0.0 if is_mean else value
        terms[name] = (total, weights[name] if is_mean else 1.0, eps)
    return terms


def _is_random(batch: Any, losses_of: Losses) -> bool:
    once, again = losses_of(batch), losses_of(batch)
    return any(not torch.equal(loss.nan_to_num(), again[name].nan_to_num()) for name, loss in once.items())


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Forwards inside leave no trace."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
