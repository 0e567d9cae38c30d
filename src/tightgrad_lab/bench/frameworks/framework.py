"""What a framework's file gives: how to hand it tensors, and its functions for the methods of `methods.py`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

NAMES = {"torch": "PyTorch", "tensorflow": "TensorFlow", "optax": "JAX/optax"}
"""What is imported, and the name of the framework."""

Tree = Sequence[Tensor]
"""Gradients or weights, plain CPU tensors."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One function of a framework.

    Args:
        name: as its documentation writes it.
        run: (gradients, weights, bound), all as the framework holds them, to a list of its tensors. Compiled, if that
            is how the framework's users run it.
        cannot: what it cannot do that training needs; plain text, from its documentation and source.
    """

    name: str
    run: Callable[[Any, Any, float], Sequence[Any]]
    cannot: str


@dataclass(frozen=True, slots=True)
class Framework:
    """One framework.

    Args:
        name: one of NAMES' values.
        version: of its distribution.
        put: torch tensors to the framework's own.
        get: back to torch.
        wait: until a result is computed.
        operations: by the id of the method.
    """

    name: str
    version: str
    put: Callable[[Tree], Any]
    get: Callable[[Sequence[Any]], list[Tensor]]
    wait: Callable[[Sequence[Any]], object]
    operations: Mapping[str, Operation]
