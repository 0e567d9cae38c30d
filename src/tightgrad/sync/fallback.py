"""How much of a step compression left out, and sending it densely where that is too much.

The relative error of a step is sqrt(sum ||v - sent||^2 / sum ||v||^2) over all tensors and ranks, where v is the
compensated gradient that was to be sent. Every rank computes the same number.
"""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from tightgrad.core.protocols import Codec, Collective, ReduceContext, Reducer
from tightgrad.core.types import Grads, Reduced, State
from tightgrad.reducers import Dense


class Send(Protocol):
    """Sends compensated gradients; collective."""

    def __call__(self, values: Grads, /, state: State) -> Reduced:
        """Their sum over ranks, and what this rank sent."""


def sending(reducer: Reducer, codec: Codec | None, context: ReduceContext) -> Send:
    """Send by a method."""
    return observed(lambda values, state: reducer.reduce(values, codec, state, context), context)


def observed(reduce: Callable[[Grads, State], Reduced], context: ReduceContext) -> Send:
    """Send by a function, and tell whoever observes what was sent."""

    def send(values: Grads, /, state: State) -> Reduced:
        reduced = reduce(values, state)
        if context.observe is not None:
            context.observe(values, reduced.transmitted)
        return reduced

    return send


def sending_densely(context: ReduceContext) -> Send:
    """Return the function that sends gradients as float32 numbers."""
    return sending(Dense(), None, context)


class ErrorMeter:
    """Adds up what was to be sent and what was not, on this rank."""

    def __init__(self) -> None:
        self._squares = torch.zeros(2, dtype=torch.float64, device="cpu")

    def add(self, values: Grads, transmitted: Mapping[str, Tensor]) -> None:
        """Take in tensors and what of them was sent."""
        for name, value in values.items():
            missed = torch.linalg.vector_norm(value - transmitted[name], dtype=torch.float64)
            norms = torch.stack([missed, torch.linalg.vector_norm(value, dtype=torch.float64)])
            self._squares += norms.square().cpu()

    def around(self, send: Send) -> Send:
        """Send as before, and take it in."""

        def metered(values: Grads, /, state: State) -> Reduced:
            reduced = send(values, state=state)
            self.add(values, reduced.transmitted)
            return reduced

        return metered

    def agreed(self, collective: Collective) -> "ErrorMeter":
        """Return the sums over all ranks. Collective: every rank must call it."""
        total = ErrorMeter()
        total._squares = collective.all_reduce_(self._squares.to(collective.control_device, copy=True)).cpu()
        return total

    def __iadd__(self, other: "ErrorMeter") -> "ErrorMeter":
        self._squares += other._squares
        return self

    @property
    def relative_error(self) -> float:
        """Return the error; 0 where nothing was to be sent, inf where it is not a number."""
        missed, whole = self._squares.tolist()
        if whole == 0.0:
            return 0.0
        error = math.sqrt(missed / whole)
        return error if math.isfinite(error) else math.inf
