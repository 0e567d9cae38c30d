"""What the autograd graph of a loss shows of it, without running anything again.

A loss that was computed in the user's own loop cannot be evaluated on other samples. Its graph still tells of some
losses that are no mean over samples: products of representations with one another, one for each pair of the batch;
distances between them; batch normalisation by the batch's own statistics; and a division by the number of micro-batches
that a loop by hand needs. Nothing is seen inside of compiled code, and of what has no gradient.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor

MOST_NODES = 20_000  # of a graph that are looked at
_PARAMETER = "torch::autograd::AccumulateGrad"
# What leaves the entries of a tensor as they are, up to order, dtype or a factor.
_SAME_ENTRIES = frozenset(
    f"{name}Backward"
    for name in (
        *("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Alias", "ToCopy", "Clone", "Unsqueeze"),
        *("Squeeze", "Expand"),
    )
)
# Names of the saved sizes of both factors of a product (torch 2.9 to 2.14); a torch without them is not looked at.
_FACTORS = {
    "MmBackward": ("_saved_self_sym_sizes", "_saved_mat2_sym_sizes"),
    "AddmmBackward": ("_saved_mat1_sym_sizes", "_saved_mat2_sym_sizes"),
}
_DISTANCES = ("CdistBackward", "EuclideanDistBackward")


def mixes_samples(loss: Tensor, num_samples: int) -> str | None:
    """Say where the samples of a batch meet each other on the way to its loss; None if that is not seen.

    Args:
        loss: with its graph.
        num_samples: of the batch, at least 2; more sizes than this one are multiples of it (two views of each).
    """
    for node in islice(_nodes(loss), MOST_NODES):
        kind = node.name().rstrip("0123456789")
        if kind in _FACTORS:
            shapes = [tuple(getattr(node, name, ())) for name in _FACTORS[kind]]
            if all(len(shape) == 2 for shape in shapes) and _are_both_computed(node):
                (rows, inner), (_, columns) = shapes
                if rows % num_samples == 0 and columns % num_samples == 0:
                    return f"a product of shape ({rows}, {columns}) compares the {num_samples} samples with one another"
                if inner % num_samples == 0:
                    return f"a product of shape ({rows}, {columns}) adds up over the {num_samples} samples"
        elif kind in _DISTANCES:
            return f"distances between the {num_samples} samples are taken"
        elif kind == "BmmBackward":
            shape = _shape(node)
            is_one = len(shape) == 3 and shape[0] == 1
            if is_one and not any(size % num_samples for size in shape[1:]) and _are_both_computed(node):
                return f"a product of shape {shape[1:]} compares the {num_samples} samples with one another"
    return None


def normalises_batch(loss: Tensor) -> bool:
    """Tell whether batch normalisation by the batch's own statistics is on the way to a loss."""
    nodes = islice(_nodes(loss), MOST_NODES)
    return any("BatchNorm" in node.name() and getattr(node, "_saved_training", False) for node in nodes)


def divided_by(loss: Tensor) -> float | None:
    """Return the number by which a finished loss was divided in the end; None if it was not, or by a tensor that has a
    gradient. What halves a loss is none where people usually write it so: (a + b) / 2, 0.5 * a.
    """
    node: Any = loss.grad_fn
    factor = {"DivBackward0": 1, "MulBackward0": -1}.get(node.name() if node is not None else "")
    if factor is None or node.next_functions[0][0] is None:
        return None
    is_half = factor < 0 or node.next_functions[0][0].name() == "AddBackward0"
    number = getattr(node, "_saved_other", None)
    if not isinstance(number, Tensor) or number.numel() != 1 or number.requires_grad:
        return None
    value = float(number) ** factor if float(number) else None
    return None if is_half and value == 2 else value


def _nodes(loss: Tensor) -> Iterator[Any]:
    """All nodes of a graph, the last ones first."""
    waiting = [loss.grad_fn] if loss.grad_fn is not None else []
    seen = {*waiting}
    for node in waiting:
        yield node
        for other, _ in node.next_functions:
            if other is not None and other not in seen:
                seen.add(other)
                waiting.append(other)


def _shape(node: Any) -> tuple[int, ...]:
    """Shape of what the node's operator made (torch 2.9 to 2.14)."""
    about = getattr(node, "_input_metadata", None)
    return tuple(about[0].shape) if about else ()


def _are_both_computed(node: Any) -> bool:
    """Whether both factors come out of layers, and neither is a parameter or without a gradient."""
    factors = [other for other, _ in node.next_functions][-2:]
    return all(other is not None and not _is_parameter(other) for other in factors)


def _is_parameter(node: Any) -> bool:
    while node is not None and node.name().rstrip("0123456789") in _SAME_ENTRIES:
        node = node.next_functions[0][0]
    return node is not None and node.name() == _PARAMETER
