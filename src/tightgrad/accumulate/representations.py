"""Representations of the micro-batches of a window, computed before the loss of all of them.

    first pass   z_k = encode(batch_k) for all k, without a graph
    loss         L(z_1 ... z_K), and its gradient g with respect to every z_k
    second pass  z_k once more, with a graph and the same random numbers; its backward begins with g_k

This is the chain rule, so the gradient is exactly that of L on one big batch (GradCache: Gao et al. 2021,
arXiv:2101.06983). Departs from the paper's code: representations may be any tree of tensors, scalars among them (a
learnt temperature) are shared by all micro-batches, and the second pass is compared with the first.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten  # torch 2.9 to 2.14: no public name yet

from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.accumulate.split import batch_size, fresh
from tightgrad.accumulate.trial_forward import without_graph
from tightgrad.core.errors import ConfigError, UsageError
from tightgrad.core.global_rng import GlobalRng

Encode = Callable[[Any], Any]
SAME = 1e-4  # relative difference of the two passes that rounding may make: one has a graph, the other has not
SAME_IN_LOW_PRECISION = 3e-2


@dataclass(frozen=True)
class Encoded:
    """Holds a micro-batch, and what `encode` gave for it.

    Attributes:
        batch: as the loader gave it.
        leaves: its tensors; those of one dimension or more have a row a sample, the others are shared.
        spec: how they make up a tree.
        num_rows: of each leaf with rows; 0 for a micro-batch that counts nothing.
        before: the generators before.
    """

    batch: Any
    leaves: list[Tensor]
    spec: TreeSpec
    num_rows: int
    before: GlobalRng


def encoded(batch: Any, encode: Encode, *, counts: bool) -> Encoded:
    """Run the first pass over one micro-batch.

    Args:
        batch: that is encoded.
        encode: of the user.
        counts: whether the micro-batch has a weight; its rows are left out of the loss otherwise.

    Raises:
        UsageError: it gave something else than tensors with one row a sample, and scalars.
    """
    before = GlobalRng.now()
    # Which may use it up; the second pass takes it as well.
    leaves, spec = tree_flatten(without_graph(lambda: encode(fresh(batch))))
    num_rows = _checked_rows(leaves, batch)
    return Encoded(batch, [leaf.detach() for leaf in leaves], spec, num_rows if counts else 0, before)


def _checked_rows(leaves: Sequence[Any], batch: Any) -> int:
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise UsageError(
                f"encode() returned a {type(leaf).__name__} among the representations; return tensors with one row a "
                "sample, and scalars, in tuples, lists or dictionaries."
            )
    rows = sorted({len(leaf) for leaf in leaves if leaf.dim()})
    if not rows:
        raise UsageError(
            "encode() returned no representation with a row a sample; return a tensor of shape (samples, features), or "
            "several in a tuple, list or dictionary."
        )
    expected = _num_samples(batch) or rows[0]
    if rows != [expected]:
        raise UsageError(
            f"encode() returned {' and '.join(map(str, rows))} rows for a batch of {expected} samples. Every tensor "
            "needs one row a sample, since micro-batches are put together row by row: return two views as two tensors "
            "and not one below the other, and a temperature as a scalar (logit_scale.squeeze())."
        )
    return expected


def _num_samples(batch: Any) -> int | None:
    try:
        return batch_size(batch)
    except ConfigError:  # does not show it
        return None


def joined(parts: Sequence[Encoded]) -> list[Tensor]:
    """Return the rows of all micro-batches, leaf by leaf; a shared scalar as it is.

    Raises:
        UsageError: the micro-batches' representations do not fit together.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.spec != first.spec:
            raise UsageError(
                f"encode() returned {' '.join(str(first.spec).split())} for one micro-batch and "
                f"{' '.join(str(part.spec).split())} for another; return the same for all."
            )
    columns = [[part.leaves[index] for part in parts] for index in range(len(first.leaves))]
    return [_joined(column, [part.num_rows for part in parts]) for column in columns]


def _joined(leaves: Sequence[Tensor], num_rows: Sequence[int]) -> Tensor:
    if not leaves[0].dim():
        return leaves[0].clone()
    kinds = sorted({f"{tuple(leaf.shape[1:])} {leaf.dtype}" for leaf in leaves})
    if len(kinds) > 1:
        raise UsageError(
            f"rows of two micro-batches' representations differ ({' and '.join(kinds)}), so that samples cannot be "
            "compared across them; pad them to one length, or pool them."
        )
    return torch.cat([leaf[:num] for leaf, num in zip(leaves, num_rows, strict=True)])


def cut(grads: Sequence[Tensor | None], parts: Sequence[Encoded]) -> list[list[Tensor | None]]:
    """Return the gradients of each micro-batch's leaves, of those of all rows: undo `joined`.

    A shared scalar's gradient goes to the last micro-batch that has rows, and no other.
    """
    last = max((index for index, part in enumerate(parts) if part.num_rows), default=-1)
    pieces = []
    start = 0
    for index, part in enumerate(parts):
        stop = start + part.num_rows
        pieces.append(
            [_piece(leaf, grad, start, stop, index == last) for leaf, grad in zip(part.leaves, grads, strict=True)]
        )
        start = stop
    return pieces


def _piece(leaf: Tensor, grad: Tensor | None, start: int, stop: int, is_last: bool) -> Tensor | None:
    if grad is None:
        return None
    is_there = start < stop if leaf.dim() else is_last
    return (grad[start:stop] if leaf.dim() else grad) if is_there else torch.zeros_like(leaf)


def with_gradient(leaves: Iterable[Tensor], grads: Iterable[Tensor | None]) -> Tensor | None:
    """Return a scalar whose gradient with respect to each leaf is the given one; None if no leaf has a graph."""
    terms = [
        (leaf * grad.to(leaf.device)).sum()
        for leaf, grad in zip(leaves, grads, strict=True)
        if grad is not None and leaf.requires_grad
    ]
    return torch.stack([term.to(torch.float32) for term in terms]).sum() if terms else None


def differs(before: Sequence[Tensor], now: Sequence[Tensor]) -> Tensor:
    """Return whether the second pass gave other representations than the first; on the device, without waiting."""
    found = []
    for one, other in zip(before, now, strict=True):
        if one.shape != other.shape:
            return torch.ones((), dtype=torch.bool, device="cpu")
        is_low = one.dtype in LOW_PRECISION
        first, second = (value.detach().float() if is_low else value.detach() for value in (one, other))
        if not first.is_floating_point():
            found.append((first != second).any())
            continue
        bound = (SAME_IN_LOW_PRECISION if is_low else SAME) * torch.linalg.vector_norm(first)
        found.append(torch.linalg.vector_norm((first - second).nan_to_num()) > bound)
    return torch.stack(found).any()


def rebuilt(leaves: Sequence[Tensor], part: Encoded) -> Any:
    """Return the tree that `loss` is given."""
    return tree_unflatten(list(leaves), part.spec)
