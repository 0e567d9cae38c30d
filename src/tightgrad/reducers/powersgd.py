"""PowerSGD: one step of power iteration, started from the last one. For each matrix M_r (n x m) of rank r:

    P = orthonormal(sum_r M_r Q);   Q_r = M_r' P;   total = P (sum_r Q_r)';   transmitted by r = P Q_r'.

    Vogels et al. 2019, PowerSGD, arXiv:1905.13727.

(n + m) numbers for each of the `approximation_rank` columns leave a rank, whatever the number of ranks. Gradients of
one dimension, and those where that is not `min_compression_factor` times fewer than n m, are sent whole, in the same
messages.

Numbers are float32. With a codec, the sums of both rounds are those of `two_shot`: an error in P turns the basis a
little, and one in Q_r is not transmitted and so returns with error feedback.

Departs from the paper: what a rank transmitted is P Q_r', its own part of the total, so that the residual is local; the
warm start has columns of length one, so that neither P nor Q loses digits to the size of the gradient; a column that
the gradient gives no direction for keeps its old one.

Ranks end bitwise equal where the same matrix product gives the same bits on all of them, that is on equal hardware and
equal numbers of threads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer, check_number
from tightgrad.core.errors import StateMismatchError
from tightgrad.core.protocols import Codec, ReduceContext, Reducer
from tightgrad.core.rng import seeded
from tightgrad.core.types import Grads, Reduced, Slot, State
from tightgrad.reducers.sums import sum_over_ranks
from tightgrad.reducers.two_shot import TwoShot, reduce_in_two_shots

WARM_START = Slot("powersgd_warm_start", across_ranks="equal", dtype=torch.float32, role="factors")


@dataclass(frozen=True)
class PowerSGD(Reducer):
    """Sums low-rank factors of each matrix, in float32, or encoded if there is a codec.

    Args:
        approximation_rank: columns of each factor, at least 1.
        min_compression_factor: matrices for which n m / (n + m) / approximation_rank is less are sent whole.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.clock import StageClock
        >>> from tightgrad.core.protocols import ReduceContext
        >>> from tightgrad.core.rng import StepRng
        >>> def total(collective):
        ...     context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        ...     grads = {"weight": torch.outer(torch.arange(1.0, 9.0), torch.ones(8)) * (1 + collective.rank)}
        ...     reduced = tg.reducers.PowerSGD(approximation_rank=1).reduce(grads, None, {}, context)
        ...     return collective.traffic.nbytes, reduced.total["weight"][:, 0].round().tolist()
        >>> tg.collectives.run_threaded(2, total)[0]
        (64, [3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0, 24.0])
    """

    approximation_rank: int = 4
    min_compression_factor: float = 2.0

    card: ClassVar[MethodCard] = MethodCard(
        id="powersgd",
        kind="reducer",
        summary="low-rank factors of each matrix, summed; bytes do not grow with the number of ranks",
        scope="matrix",
        reference="Vogels et al. 2019, arXiv:1905.13727",
        use_when="gradients are matrices, at any number of ranks; combine with error feedback",
        avoid_when="the model has no large matrices, or the wrapper hands over flat buffers",
    )
    slots: ClassVar[tuple[Slot, ...]] = (WARM_START,)

    def __post_init__(self) -> None:
        check_integer("approximation_rank", self.approximation_rank, low=1)
        check_number("min_compression_factor", self.min_compression_factor, low=1.0)

    def refuses(self, codec: Codec | None) -> str | None:
        """Return why `two_shot`, which sums encoded factors, cannot run with `codec`; None if it can."""
        return None if codec is None else TwoShot().refuses(codec)

    def matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return rows and columns of a gradient that is approximated; None for one that is sent whole."""
        if len(shape) < 2 or not all(shape):
            return None
        rows = shape[0]
        columns = torch.Size(shape).numel() // rows
        factors = (rows + columns) * min(self.approximation_rank, rows, columns)
        return (rows, columns) if rows * columns >= self.min_compression_factor * factors else None

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum `grads` over ranks. Collective: every rank must call it with the same names and shapes."""
        low_rank: Grads = {}
        plain: Grads = {}
        for name, grad in grads.items():
            shape = self.matrix_shape(tuple(grad.shape))
            if shape is None:
                plain[name] = grad.float()
            else:
                low_rank[name] = grad.float().reshape(shape)
        with context.clock("encode"):
            start = {name: self._start(name, matrix, state, context) for name, matrix in low_rank.items()}
            left = products(low_rank, start)
        first = _sum({**plain, **_labelled("P", left)}, codec, context)
        with context.clock("encode"):
            left = {name: orthonormal(first.total[f"{name}.P"]) for name in low_rank}
            right = products({name: matrix.T for name, matrix in low_rank.items()}, left)
        second = _sum(_labelled("Q", right), codec, context)
        with context.clock("decode"):
            total, transmitted = (
                products(left, {name: factors[f"{name}.Q"].T for name in low_rank})
                for factors in (second.total, second.transmitted)
            )
        kept = {name: _directions(second.total[f"{name}.Q"], start[name]) for name in low_rank}
        total.update({name: first.total[name] for name in plain})
        transmitted.update({name: first.transmitted[name] for name in plain})
        return Reduced(
            {name: total[name].view(grad.shape) for name, grad in grads.items()},
            {name: transmitted[name].view(grad.shape) for name, grad in grads.items()},
            {WARM_START.name: {**state.get(WARM_START.name, {}), **kept}},
        )

    def _start(self, name: str, matrix: Tensor, state: State, context: ReduceContext) -> Tensor:
        rows, columns = matrix.shape
        shape = (columns, min(self.approximation_rank, rows, columns))
        saved = state.get(WARM_START.name, {}).get(name)
        if saved is None:
            generator = seeded(context.rng.shared_seed(name), torch.device("cpu"))
            drawn: Tensor = torch.linalg.qr(
                torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            ).Q
            return drawn.to(matrix.device)
        if saved.shape != shape:
            raise StateMismatchError(
                f"the warm start of {name!r} has shape {tuple(saved.shape)}, but approximation_rank="
                f"{self.approximation_rank} needs {shape}; resume with the saved approximation_rank, or start afresh."
            )
        return saved


def orthonormal(factor: Tensor) -> Tensor:
    """Return orthonormal columns that span those of `factor` (n, r), n >= r."""
    largest = factor.abs().max()
    basis: Tensor = torch.linalg.qr(factor / torch.where(largest > 0, largest, 1.0)).Q
    return basis


def products(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply each pair of matrices; on an accelerator, those of one shape in one call."""
    if all(matrix.device.type == "cpu" for matrix in left.values()):
        return {name: matrix @ right[name] for name, matrix in left.items()}
    groups: dict[tuple[torch.Size, torch.Size], list[str]] = {}
    for name, matrix in left.items():
        groups.setdefault((matrix.shape, right[name].shape), []).append(name)
    result: dict[str, Tensor] = {}
    for names in groups.values():
        stacked = torch.bmm(torch.stack([left[n] for n in names]), torch.stack([right[n] for n in names]))
        result.update(zip(names, stacked.unbind(), strict=True))
    return result


def _labelled(factor: str, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of their own, since a codec draws its random numbers by name."""
    return {f"{name}.{factor}": matrix for name, matrix in matrices.items()}


def _sum(tensors: Grads, codec: Codec | None, context: ReduceContext) -> Reduced:
    if codec is not None:
        return reduce_in_two_shots(tensors, codec, codec, context)
    if not tensors:
        return Reduced({}, {})
    with context.clock("collective"):
        buffer = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
        pieces = sum_over_ranks(buffer, context.collective).split([tensor.numel() for tensor in tensors.values()])
    return Reduced(
        {name: piece.view(t.shape) for (name, t), piece in zip(tensors.items(), pieces, strict=True)}, tensors
    )


def _directions(factor: Tensor, before: Tensor) -> Tensor:
    """Columns of length one; those of length zero as they were."""
    largest = factor.abs().amax(dim=0)
    scaled = factor / torch.where(largest > 0, largest, 1.0)
    lengths = torch.linalg.vector_norm(scaled, dim=0)
    return torch.where(lengths > 0, scaled / torch.where(lengths > 0, lengths, 1.0), before)
