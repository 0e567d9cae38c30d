"""PowerSGD against its definition, and what its memory must survive."""

from functools import partial

import pytest
import torch
from torch import Tensor

import tightgrad as tg
from conformance.wire_bytes import powersgd_nbytes
from tightgrad.codecs import Cast, IntBlock, SizeAdaptive, TopK
from tightgrad.collectives import ThreadedCollective, run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import ConfigError, IncompatiblePlanError, StateMismatchError
from tightgrad.core.protocols import Codec, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, Reduced, State
from tightgrad.reducers import Hierarchical, PowerSGD
from tightgrad.reducers.powersgd import WARM_START

SHAPES = {"conv": (8, 4, 3, 3), "matrix": (30, 20), "bias": (30,), "scalar": (), "thin": (40, 1)}


def low_rank(seed: int, rank: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(30, rank, generator=generator) @ torch.randn(rank, 20, generator=generator)


def reduce_steps(
    grads_of: "list[list[Grads]]", reducer: PowerSGD, state: State | None = None, codec: Codec | None = None
) -> list[tuple[list[Reduced], int]]:
    """`grads_of[rank][step]`."""

    def body(collective: ThreadedCollective) -> tuple[list[Reduced], int]:
        held: State = state or {}
        results = []
        for step, grads in enumerate(grads_of[collective.rank]):
            context = ReduceContext(collective, StepRng(0, step, collective.rank), StageClock())
            results.append(reducer.reduce(grads, codec, held, context))
            held = results[-1].state
        return results, collective.traffic.nbytes

    return run_threaded(len(grads_of), body)


def test_a_matrix_of_low_rank_is_exact() -> None:
    grads = [[{"m": low_rank(rank, 1)}] for rank in range(2)]
    for results, _ in reduce_steps(grads, PowerSGD(approximation_rank=2)):
        assert torch.allclose(results[0].total["m"], grads[0][0]["m"] + grads[1][0]["m"], atol=1e-4)


def test_one_step_is_the_papers() -> None:
    matrix = torch.randn(30, 20, generator=torch.Generator().manual_seed(3))
    start = torch.linalg.qr(torch.randn(20, 3, generator=torch.Generator().manual_seed(4))).Q
    reducer = PowerSGD(approximation_rank=3)
    [(results, _)] = reduce_steps([[{"m": matrix}]], reducer, {WARM_START.name: {"m": start}})
    left = torch.linalg.qr(matrix @ start).Q
    assert torch.allclose(results[0].total["m"], left @ (left.T @ matrix), atol=1e-5)
    kept = results[0].state[WARM_START.name]["m"]
    assert torch.allclose(kept.norm(dim=0), torch.ones(3))


def test_the_warm_start_converges_to_the_largest_directions() -> None:
    matrix = low_rank(1, 2) + 0.1 * torch.randn(30, 20, generator=torch.Generator().manual_seed(2))
    [(results, _)] = reduce_steps([[{"m": matrix}] * 12], PowerSGD(approximation_rank=2))
    u, s, v = torch.linalg.svd(matrix)
    best = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
    errors = [float((result.total["m"] - matrix).norm()) for result in results]
    assert errors[-1] <= 1.001 * float((best - matrix).norm()) < errors[0]


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e15])
def test_no_digits_are_lost_to_the_size_of_the_gradient(scale: float) -> None:
    matrix = low_rank(1, 2)
    [(usual, _)] = reduce_steps([[{"m": matrix}] * 3], PowerSGD(2))
    [(scaled, _)] = reduce_steps([[{"m": matrix * scale}] * 3], PowerSGD(2))
    assert torch.allclose(scaled[-1].total["m"] / scale, usual[-1].total["m"], atol=1e-4)


def test_a_zero_gradient_leaves_a_start_that_works() -> None:
    steps = [{"m": torch.zeros(30, 20)}, {"m": low_rank(1, 1)}]
    [(results, _)] = reduce_steps([steps], PowerSGD(1))
    assert not bool(results[0].total["m"].any())
    assert torch.allclose(results[1].total["m"], steps[1]["m"], atol=1e-4)


def test_vectors_and_thin_matrices_go_as_they_are() -> None:
    grads = [
        {name: torch.randn(shape, generator=torch.Generator().manual_seed(rank)) for name, shape in SHAPES.items()}
        for rank in range(2)
    ]
    results = reduce_steps([[grad] for grad in grads], PowerSGD(1))
    for name in ("bias", "scalar", "thin"):
        assert torch.equal(results[0][0][0].total[name], grads[0][name] + grads[1][name])
    numbers = 30 + 1 + 40 + (8 + 36) + (30 + 20)
    assert [nbytes for _, nbytes in results] == [4 * numbers] * 2
    assert set(results[0][0][0].state[WARM_START.name]) == {"conv", "matrix"}


def test_the_residual_is_local() -> None:
    """A rank that has nothing to say transmits nothing, whatever the others do."""
    results = reduce_steps([[{"m": low_rank(1, 5)}], [{"m": torch.zeros(30, 20)}]], PowerSGD(2))
    assert not bool(results[1][0][0].transmitted["m"].any())
    assert torch.allclose(results[0][0][0].transmitted["m"], results[0][0][0].total["m"], atol=1e-5)


def test_state_of_another_rank_is_refused() -> None:
    [(results, _)] = reduce_steps([[{"m": low_rank(1, 2)}]], PowerSGD(2))
    with pytest.raises(StateMismatchError, match="approximation_rank=3"):
        reduce_steps([[{"m": low_rank(1, 2)}]], PowerSGD(3), results[0].state)


def noisy(rank: int) -> Tensor:
    return low_rank(7, 3) + 0.3 * torch.randn(30, 20, generator=torch.Generator().manual_seed(rank))


def test_an_exact_codec_gives_the_same_factors() -> None:
    grads = [[{"m": noisy(rank)}] * 3 for rank in range(3)]
    plain = reduce_steps(grads, PowerSGD(2))
    coded = reduce_steps(grads, PowerSGD(2), codec=Cast("float32"))
    for (one, _), (other, _) in zip(plain, coded, strict=True):
        assert torch.allclose(one[-1].total["m"], other[-1].total["m"], atol=1e-4)
        assert torch.allclose(one[-1].transmitted["m"], other[-1].transmitted["m"], atol=1e-4)


def test_a_codec_shortens_factors_and_its_error_is_not_transmitted() -> None:
    grads = [[{"m": noisy(rank)}] for rank in range(2)]
    plain = reduce_steps(grads, PowerSGD(2))
    coded = reduce_steps(grads, PowerSGD(2), codec=IntBlock(bits=4, block_size=10))
    exact = plain[0][0][0].total["m"]
    total = coded[0][0][0].total["m"]
    assert 0.01 < float((total - exact).norm() / exact.norm()) < 0.3  # four bits show
    assert torch.allclose(sum(results[0].transmitted["m"] for results, _ in coded), total, atol=1e-5)
    assert coded[0][1] < plain[0][1] / 4


def test_error_feedback_returns_what_a_coarse_codec_lost() -> None:
    """Whatever two bits do to the factors: all that arrives, and all residuals, are all that was put in."""
    compress = tg.Compress(IntBlock(bits=2, block_size=10), PowerSGD(2), tg.ErrorFeedback())
    assert compress.feedback is not None

    def body(collective: ThreadedCollective) -> tuple[Tensor, Tensor]:
        state: State = {}
        arrived = torch.zeros(30, 20)
        for step in range(8):
            context = ReduceContext(collective, StepRng(0, step, collective.rank), StageClock())
            inner = partial(PowerSGD(2).reduce, codec=compress.codec, state=state, context=context)
            assert compress.feedback is not None
            reduced = compress.feedback.reduce_({"m": noisy(10 * step + collective.rank)}, state, inner)
            arrived += reduced.total["m"]
            state = {**state, **reduced.state}
        return arrived, state["residual"]["m"]

    found = run_threaded(2, body)
    put_in = sum(noisy(10 * step + rank) for step in range(8) for rank in range(2))
    assert torch.equal(found[0][0], found[1][0])
    residuals = found[0][1] + found[1][1]
    assert float(residuals.norm()) > 0.1
    assert torch.allclose(found[0][0] + residuals, put_in, atol=1e-3)


def test_small_factors_may_stay_float32() -> None:
    grads = [{"m": noisy(rank), "bias": torch.randn(30)} for rank in range(2)]
    codec = SizeAdaptive(IntBlock(bits=4, block_size=10), threshold=41)
    results = reduce_steps([[grad] for grad in grads], PowerSGD(2), codec=codec)
    assert torch.equal(results[0][0][0].total["bias"], grads[0]["bias"] + grads[1]["bias"])
    shapes = {"m": (30, 20), "bias": (30,)}
    assert results[0][1] == powersgd_nbytes(2)(shapes, codec, 2, 0) < powersgd_nbytes(2)(shapes, None, 2, 0)


def test_what_it_does_not_go_with() -> None:
    with pytest.raises(IncompatiblePlanError, match="two_shot cuts tensors"):
        tg.Compress(TopK(0.1), PowerSGD())
    with pytest.raises(ConfigError, match="remembers nothing"):
        Hierarchical(2, inner=PowerSGD())
    plan = tg.Plan(compress=tg.Compress(reducer=PowerSGD(2), feedback=tg.ErrorFeedback()))
    assert tg.Plan.from_json(plan.to_json()) == plan
    assert set(plan.slots) == {WARM_START.name, "residual"}
