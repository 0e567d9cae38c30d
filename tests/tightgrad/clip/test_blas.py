"""The sum of squares by numpy's BLAS: as exact as torch's rows, the same digits everywhere, never quietly wrong."""

import math

import pytest
import torch
from torch import Tensor

from tightgrad.clip import blas, local_norm
from tightgrad.clip.blas import has_steady_dot, sum_of_squares
from tightgrad.clip.norm import total_norm

pytestmark = pytest.mark.skipif(not has_steady_dot(), reason="numpy does not call OpenBLAS, or is older than 2.0")
one_thread = pytest.mark.parametrize("threads", [1], indirect=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors the BLAS was given, at each call."""
    calls: list[int] = []

    def counted(tensors: list[Tensor]) -> float:
        calls.append(len(tensors))
        return sum_of_squares(tensors)

    monkeypatch.setattr(blas, "sum_of_squares", counted)
    return calls


def exact(tensors: list[Tensor]) -> float:
    return sum(float(tensor.detach().double().square().sum()) for tensor in tensors)


def test_several_shapes_with_a_graph_or_a_pending_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((300, 700), (30, 7000), (5, 7, 11), (), (4097,), (1024, 1024), (0, 3))
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[0].requires_grad_()
    tensors.append(torch._neg_view(torch.randn(5000, generator=generator)))
    assert tensors[-1].is_neg()
    assert sum_of_squares(tensors) == pytest.approx(exact(tensors), rel=2e-7)
    assert sum_of_squares([]) == 0.0


@pytest.mark.parametrize("numel", [3, 100_000])
def test_zeros_without_memory(numel: int) -> None:
    zeros = torch._efficientzerotensor((numel,))  # type: ignore[attr-defined]
    assert sum_of_squares([zeros, torch.ones(2)]) == 2.0


@pytest.mark.parametrize("numel", [300, 70_000, 300_001])
def test_the_same_digits_wherever_the_numbers_lie(numel: int) -> None:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    memory = torch.empty(numel + 33)
    found = {sum_of_squares([memory[start : start + numel].copy_(values)]) for start in range(33)}
    assert found == {sum_of_squares([values])}


def test_what_was_read_can_still_be_resized() -> None:
    values = torch.ones(5000)
    sum_of_squares([values])
    assert values.untyped_storage().resizable()


def test_many_rows_are_added_up_as_exactly_as_few() -> None:
    few = [torch.full((3,), 0.1)] * blas.FEW_ROWS
    many = few + few
    assert sum_of_squares(few) == pytest.approx(exact(few), rel=1e-7)
    assert sum_of_squares(many) == pytest.approx(2 * sum_of_squares(few), rel=1e-12)


@pytest.mark.parametrize("few", [1, blas.FEW_ROWS])
@pytest.mark.parametrize("bad", [1e30, math.inf, math.nan])
def test_what_is_not_finite_comes_through_without_a_warning(bad: float, few: int) -> None:
    found = sum_of_squares([torch.ones(10)] * few + [torch.full((5000,), bad)])
    assert repr(found) == repr(bad if math.isnan(bad) else math.inf)


def test_one_thread_asks_the_blas_and_several_share_torchs_rows(threads: int, asked: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(400, 300, generator=generator), torch.randn(9, generator=generator)]
    assert float(total_norm(tensors)) == pytest.approx(math.sqrt(exact(tensors)), rel=1e-7)
    assert asked == ([2] if threads == 1 else [])


@one_thread
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("many", "by_blas"), [(0, 11), (1, 1)])
def test_many_small_tensors_are_left_to_torch(many: int, by_blas: int, asked: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    small = local_norm.FEW_TENSORS + 1 if many else 10
    tensors = [torch.randn(100, 30, generator=generator) for _ in range(small)]
    tensors.append(torch.randn(400, 300, generator=generator))
    assert float(total_norm(tensors)) == pytest.approx(math.sqrt(exact(tensors)), rel=1e-7)
    assert asked == [by_blas]


@one_thread
@pytest.mark.usefixtures("threads")
def test_without_a_steady_blas_torch_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "has_steady_dot", lambda: False)
    monkeypatch.setattr(blas, "sum_of_squares", None)
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert float(total_norm([values])) == pytest.approx(math.sqrt(exact([values])), rel=1e-6)


@one_thread
@pytest.mark.usefixtures("threads")
def test_of_several_kinds_each_is_added_up_its_own_way() -> None:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(300, 400, generator=generator)
    tensors = [dense, dense.clone().t(), dense.bfloat16(), dense.double(), dense.half()[:, ::2]]
    assert not tensors[1].is_contiguous()
    assert not tensors[4].is_contiguous()
    assert float(total_norm(tensors)) == pytest.approx(math.sqrt(exact(tensors)), rel=1e-6)
