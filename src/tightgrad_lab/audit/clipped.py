"""What the optimizer would have taken if a known mistake had been made in clipping."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from tightgrad_lab.audit.candidates import Window, exact, shares

Pieces = Callable[[Tensor], Mapping[str, Tensor]]
POWERS_OF_TWO = [2.0**power for power in range(2, 33)]


def clip(gradient: Tensor, max_norm: float, norm: Tensor | None = None) -> Tensor:
    """The gradient, limited to `max_norm`."""
    norm = torch.linalg.vector_norm(gradient) if norm is None else norm
    return gradient * torch.clamp(max_norm / norm, max=1.0) if norm > 0 else gradient


def clip_mistakes(
    window: Window, max_norm: float, pieces: Pieces, tied: Mapping[str, int]
) -> Iterator[tuple[str, Tensor]]:
    """Mistakes by name, each with what it gives; those that are right in other respects first."""
    right = exact(window.micro_batches)
    norm = torch.linalg.vector_norm(right)
    if tied:
        yield "tied twice", _tied_twice(right, max_norm, pieces, tied)
    yield "never", right
    for scale in (float(window.ranks), float(window.size), float(window.length), *POWERS_OF_TWO):
        if scale > 1:
            name = "W" if scale == window.ranks else "K" if scale == window.size else "S"
            yield f"before division by {name}", clip(right, max_norm) / scale
            if max_norm * scale < norm:
                yield f"bound times {name}", clip(right, max_norm * scale)
    for scale in POWERS_OF_TWO:
        yield "unscaled twice", clip(right, max_norm) / scale
        yield "unscaled twice", clip(right / scale, max_norm)
    parts = shares(window.micro_batches)
    if window.length > 1:
        yield "in mid-window", _in_mid_window(parts, max_norm)
        yield (
            "each micro-batch",
            torch.stack([_mean(_clipped_sum(rank, max_norm)) * len(rank) for rank in parts]).mean(0),
        )
    if window.ranks > 1:
        yield "each rank", torch.stack([clip(torch.stack(rank).sum(0), max_norm) for rank in parts]).mean(0)
        yield "each shard", _each_shard(right, max_norm, pieces, window.ranks)
    norms = torch.stack([torch.linalg.vector_norm(piece) for piece in pieces(right).values()])
    yield "sum of norms", clip(right, max_norm, norms.sum())
    yield "largest tensor", clip(right, max_norm, norms.max())
    yield "each parameter", torch.cat([clip(piece, max_norm) for piece in pieces(right).values()])
    for kind, order in (("1-norm", 1.0), ("inf-norm", torch.inf)):
        yield kind, clip(right, max_norm, torch.linalg.vector_norm(right, order))
    yield "by value", right.clamp(-max_norm, max_norm)
    yield "squared norm", clip(right, max_norm, norm.square())


def _tied_twice(gradient: Tensor, max_norm: float, pieces: Pieces, tied: Mapping[str, int]) -> Tensor:
    found = pieces(gradient)
    squares = [piece.square().sum() * tied.get(name, 1) for name, piece in found.items()]
    coef = torch.clamp(max_norm / torch.stack(squares).sum().sqrt(), max=1.0)
    return torch.cat([piece * coef ** tied.get(name, 1) for name, piece in found.items()])


def _in_mid_window(parts: list[list[Tensor]], max_norm: float) -> Tensor:
    """Clipped after every backward; ranks meet in the last one."""
    sums = []
    for rank in parts:
        held = torch.zeros_like(rank[0])
        for part in rank[:-1]:
            held = clip(held + part, max_norm)
        sums.append(held + rank[-1])
    return clip(_mean(sums), max_norm)


def _clipped_sum(parts: list[Tensor], max_norm: float) -> list[Tensor]:
    return [clip(part, max_norm) for part in parts]


def _each_shard(gradient: Tensor, max_norm: float, pieces: Pieces, ranks: int) -> Tensor:
    """Every rank scales its rows of each parameter by the norm of its rows alone."""
    chunked = {name: list(piece.chunk(ranks)) for name, piece in pieces(gradient).items()}
    return torch.cat([torch.cat(chunks) for chunks in _scaled_by_rank(chunked, max_norm, ranks).values()])


def _scaled_by_rank(chunked: dict[str, list[Tensor]], max_norm: float, ranks: int) -> dict[str, list[Tensor]]:
    scaled = {name: list(chunks) for name, chunks in chunked.items()}
    for rank in range(ranks):
        own = [chunks[rank] for chunks in chunked.values() if rank < len(chunks)]
        norm = torch.linalg.vector_norm(torch.cat(own)) if own else torch.zeros(())
        for chunks in scaled.values():
            if rank < len(chunks):
                chunks[rank] = clip(chunks[rank], max_norm, norm)
    return scaled


def groups(
    taken: Mapping[str, Tensor], right: Mapping[str, Tensor], max_norm: float, tolerance: float
) -> list[list[str]]:
    """The parameters that were clipped together, by a norm of their own; empty if that does not explain all of them."""
    found: list[tuple[float, list[str]]] = []
    for name, piece in right.items():
        norm = torch.linalg.vector_norm(piece)
        factor = float(torch.linalg.vector_norm(taken[name]) / norm) if norm > 0 else 1.0
        if torch.linalg.vector_norm(taken[name] - factor * piece) > tolerance * max(float(norm) * factor, 1e-30):
            return []
        own = next((names for other, names in found if abs(other - factor) <= tolerance * other), None)
        if own is None:
            found.append((factor, [name]))
        else:
            own.append(name)
    for factor, names in found:
        norm = torch.linalg.vector_norm(torch.cat([right[name] for name in names]))
        if abs(float(torch.clamp(max_norm / norm, max=1.0)) - factor) > tolerance * factor:
            return []
    return [names for _, names in found] if len(found) > 1 else []


def _mean(gradients: list[Tensor]) -> Tensor:
    return torch.stack(gradients).mean(dim=0)
