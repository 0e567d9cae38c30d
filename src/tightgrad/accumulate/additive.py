"""Is the loss a weighted mean of per-sample terms? Looked at before a batch is split without having been asked to.

    n L(piece) = n1 L(first half) + n2 L(second half)          for means; without n, n1 and n2 for sums

Forwards only, without gradients. Buffers, training modes and random numbers are as before.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # torch 2.9 to 2.14: the base of all kinds, without a public name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.accumulate.split import batch_size, split_batch
from tightgrad.core.errors import ConfigError, UnsupportedError
from tightgrad.core.memory import is_out_of_memory
from tightgrad.core.notices import warn
from tightgrad.core.protocols import Collective

FINE = 1e-4  # float32 on a CPU: the sum of a piece and those of its halves are rounded otherwise
ON_A_GPU = 1e-3  # TF32, and other kernels for another number of samples
COARSE = 1e-2  # float16 and bfloat16 inside the forward, or compiled code, into which nobody looks
ROUNDINGS = 8  # of the loss's own dtype, where that is coarser

Weights = Mapping[str, float]
Verdict = Literal["additive", "random", "unknown"]


@dataclass(frozen=True)
class Forward:
    """How a piece is evaluated.

    Args:
        losses_of: gives a piece's losses, scalars by name.
        weigh: what a piece counts for each loss.
        model: that the forward runs.
        is_mean: whether losses are means over their weight, and not sums.
    """

    losses_of: Callable[[Any], Mapping[str, Tensor]]
    weigh: Callable[[Any], Weights]
    model: nn.Module
    is_mean: bool


def check_additive(batches: Sequence[Any], pieces: int, forward: Forward, collective: Collective) -> None:
    """Compare the loss of one piece with those of its halves, before batches are cut into `pieces`.

    Collective: every rank must call it.

    Raises:
        UnsupportedError: on every rank, if they differ on any.
    """
    found = _verdict(batches, pieces, forward)
    differs = found not in ("additive", "random", "unknown")
    flags = torch.tensor([differs, found == "random"], dtype=torch.int32).to(collective.control_device)
    any_differs, any_random = collective.all_reduce_(flags, "max").tolist()
    if any_differs:
        seen = found if differs else "the loss of a piece on another rank is not that of its halves"
        raise UnsupportedError(
            f"out of memory, and the batch cannot be split: {seen}, so smaller micro-batches would train on another "
            "gradient. Losses that compare the samples of a batch (InfoNCE, balance terms, advantages normalised "
            "within the batch) are no weighted mean of per-sample terms; for one that is, weight(batch) must return "
            'what it is averaged over. Take smaller batches from the loader, or on_oom="raise".'
        )
    if any_random and collective.rank == 0:
        warn(
            "out of memory: batches are split, and whether the loss is a weighted mean of per-sample terms could not "
            "be checked, since two forwards of the same samples give different losses. The gradient is that of the "
            "whole batch only if it is.",
            stacklevel=4,
        )


def _verdict(batches: Sequence[Any], pieces: int, forward: Forward) -> "Verdict | str":
    """What differs on this rank, in words; or why nothing can be said to differ."""
    try:
        whole = max(batches, key=batch_size, default=None)
        size = 0 if whole is None else batch_size(whole)
    except ConfigError:  # cannot be cut, which is told where it is cut to be run
        return "unknown"
    count = pieces
    while size >= 2:
        count = min(count, size // 2)  # a piece has halves
        try:
            piece = next((p for p in split_batch(whole, count) if all(forward.weigh(p).values())), None)
        except ConfigError:
            return "unknown"
        if piece is None:
            return "unknown"
        try:
            with _left_as_it_was(forward.model):
                return _compared(piece, forward)
        except Exception as error:
            if not is_out_of_memory(error) or count >= size // 2:
                if is_out_of_memory(error):
                    return "unknown"
                raise
        count *= 2
    return "unknown"


def _compared(piece: Any, forward: Forward) -> "Verdict | str":
    if _is_random(piece, forward):
        forward.model.eval()  # without dropout
        if _is_random(piece, forward):
            return "random"
    with _Dtypes() as dtypes:
        whole = _sums(piece, forward)
    tolerance = dtypes.tolerance(forward.model)
    parts = [_sums(half, forward) for half in split_batch(piece, 2)]
    for name, (loss, weight, rounding) in whole.items():
        halves = [part[name][0] for part in parts]
        scale = max(abs(loss), sum(map(abs, halves)))
        if abs(loss - sum(halves)) > max(tolerance, ROUNDINGS * rounding) * scale + 1e-6:
            return (
                f"the {'mean' if forward.is_mean else 'sum'} {name} of {batch_size(piece)} samples is "
                f"{loss / weight:.4g}, and {sum(halves) / weight:.4g} from its two halves"
            )
    return "additive"


def _sums(batch: Any, forward: Forward) -> dict[str, tuple[float, float, float]]:
    """Each loss summed over its samples; what to divide it by for people to read; the rounding of its dtype."""
    sums = {}
    for name, loss in forward.losses_of(batch).items():
        weight = forward.weigh(batch)[name] if forward.is_mean else 1.0
        sums[name] = (float(loss) * weight if weight else 0.0, weight, torch.finfo(loss.dtype).eps)
    return sums


class _Dtypes(TorchDispatchMode):
    """Held around a forward: sees in what precision it computes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._is_low = self._is_on_gpu = False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator; take note of the dtype of what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._is_low |= leaf.dtype in LOW_PRECISION
                self._is_on_gpu |= leaf.is_cuda
        return result

    def tolerance(self, model: nn.Module) -> float:
        """The relative difference that rounding alone may make."""
        # torch.compile's wrapper and Module.compile's attribute (torch 2.9 to 2.14).
        marks = ("_orig_mod", "_compiled_call_impl")
        is_compiled = any(getattr(module, mark, None) is not None for module in model.modules() for mark in marks)
        return COARSE if self._is_low or is_compiled else ON_A_GPU if self._is_on_gpu else FINE


def _is_random(batch: Any, forward: Forward) -> bool:
    once, again = forward.losses_of(batch), forward.losses_of(batch)
    return any(not torch.equal(loss.nan_to_num(), again[name].nan_to_num()) for name, loss in once.items())


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Forwards inside leave no trace. BatchNorm, which has a warning of its own, uses what it has learned."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        for module, _ in modes:
            if isinstance(module, _BatchNorm):
                module.training = False
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
