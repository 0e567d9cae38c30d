"""The sum of squares from short rows: exact to their float32 rounding, for any length, never quietly wrong."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tightgrad.clip import blas
from tightgrad.clip.blas import has_steady_dot
from tightgrad.clip.local_norm import NUMEL_IN_ONE_SUM
from tightgrad.clip.norm import tensor_norms, total_norm
from tightgrad.clip.rows import LONGEST_ROW, SHORTEST_ROW, row_norms, row_numel

LENGTHS = (0, 1, 255, 2048, 2049, 40_000, 65_537, 262_145, 1_000_003)
Sum = Callable[[list[Tensor]], float]


def exact(tensors: list[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors)


def by_rows(tensors: list[Tensor]) -> float:
    return float(row_norms(tensors).double().square().sum())


needs_blas = pytest.mark.skipif(not has_steady_dot(), reason="numpy does not call OpenBLAS, or is older than 2.0")


@pytest.fixture(params=[by_rows, pytest.param(blas.sum_of_squares, marks=needs_blas)])
def sum_of_squares(request: pytest.FixtureRequest) -> Sum:
    method: Sum = request.param
    return method


@pytest.mark.parametrize("numel", LENGTHS)
def test_random_numbers(numel: int, sum_of_squares: Sum) -> None:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    assert sum_of_squares([values]) == pytest.approx(exact([values]), rel=2e-7)


@pytest.mark.parametrize("numel", LENGTHS)
@pytest.mark.parametrize("value", [0.7, 1 / 3, 1e-15, 1e15])
def test_equal_numbers_whose_rounding_errors_all_point_one_way(numel: int, value: float, sum_of_squares: Sum) -> None:
    values = torch.full((numel,), value)
    assert sum_of_squares([values]) == pytest.approx(exact([values]), rel=2e-6)


def test_several_shapes_and_gradients_that_have_a_graph(sum_of_squares: Sum) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in ((300, 700), (5, 7, 11), (), (4097,))]
    tensors[0].requires_grad_()
    assert sum_of_squares(tensors) == pytest.approx(exact([tensor.detach() for tensor in tensors]), rel=2e-7)
    assert sum_of_squares([]) == 0.0


def test_rows_fit_if_they_can() -> None:
    for numel in (2_500_000, 250_000, 25_000 * 4, 4096 * 4096, 3 * 1021 * 64):
        assert numel % row_numel(numel) == 0
        assert SHORTEST_ROW <= row_numel(numel) <= LONGEST_ROW
    assert row_numel(1_000_003) == LONGEST_ROW


@pytest.mark.parametrize("scale", [1e-30, 1e-19, 1.0, 1e18, 1e30])
def test_norms_are_right_at_every_scale_and_number_of_threads(scale: float, threads: int) -> None:
    generator = torch.Generator().manual_seed(threads)
    shapes = [(NUMEL_IN_ONE_SUM + 1,), (300, 400), (64, 10, 3, 3), (7,), (), (0,)]
    tensors = [torch.randn(shape, generator=generator) * scale for shape in shapes]
    tensors += [tensors[1].t(), tensors[1].bfloat16(), tensors[1].double()]
    tensors = [tensor.clone() for tensor in tensors]
    assert float(total_norm(tensors)) == pytest.approx(math.sqrt(exact(tensors)), rel=1e-6)
    wanted = torch.tensor([math.sqrt(exact([tensor])) for tensor in tensors], dtype=torch.float64)
    torch.testing.assert_close(tensor_norms(tensors).double(), wanted, rtol=1e-6, atol=0.0)
    first = sum(float(tensor.double().abs().sum()) for tensor in tensors)
    assert float(total_norm(tensors, 1.0)) == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_comes_through(bad: float, threads: int) -> None:
    values = torch.ones(100_000)
    values[70_000] = bad
    assert repr(float(total_norm([values]))) == repr(bad)
