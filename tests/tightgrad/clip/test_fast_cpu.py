"""Norms from float32 sums of short rows: exact to their rounding, for any length and order in memory, never quietly
wrong.
"""

import math
import warnings

import pytest
import torch
from torch import Tensor

from tightgrad.clip import fast_cpu
from tightgrad.clip.fast_cpu import (
    CACHED_NUMEL,
    FEW_TENSORS,
    LONGEST_ROW,
    NUMEL_IN_ONE_SUM,
    NUMEL_OF_NO_HURRY,
    SHORTEST_ROW,
    row_numel,
    still_cached_first,
)
from tightgrad.clip.local_norm import local_norms
from tightgrad.clip.norm import tensor_norms, total_norm

LENGTHS = (0, 1, 255, 2048, 2049, 40_000, 65_537, 262_145, 1_000_003)


def exact(tensors: list[Tensor]) -> float:
    return sum(float(tensor.detach().double().square().sum()) for tensor in tensors)


def sum_of_squares(tensors: list[Tensor]) -> float:
    each = float(fast_cpu.norms(tensors, 2.0).square().sum())
    assert float(fast_cpu.norm(tensors, 2.0)) ** 2 == pytest.approx(each, rel=1e-6)
    return each


@pytest.mark.parametrize("numel", LENGTHS)
def test_random_numbers(numel: int) -> None:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    assert sum_of_squares([values]) == pytest.approx(exact([values]), rel=2e-7)


@pytest.mark.parametrize("numel", LENGTHS)
@pytest.mark.parametrize("value", [0.7, 1 / 3, 2e-15, 1e15])
def test_equal_numbers_whose_rounding_errors_all_point_one_way(numel: int, value: float) -> None:
    values = torch.full((numel,), value)
    assert sum_of_squares([values]) == pytest.approx(exact([values]), rel=2e-6)


def test_many_small_tensors_share_one_call_in_which_equal_numbers_lose_a_digit() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(100, 30, generator=generator) for _ in range(FEW_TENSORS + 1)]
    assert sum_of_squares(drawn) == pytest.approx(exact(drawn), rel=2e-7)
    equal = [torch.full((NUMEL_IN_ONE_SUM,), 0.7123)] * (FEW_TENSORS + 1)
    assert sum_of_squares(equal) == pytest.approx(exact(equal), rel=5e-5)
    assert sum_of_squares(equal[:1]) == pytest.approx(exact(equal[:1]), rel=2e-6)


def test_several_shapes_gradients_that_have_a_graph_and_a_pending_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((300, 700), (30, 7000), (5, 7, 11), (), (4097,), (1024, 1024), (0, 3))
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[0].requires_grad_()
    tensors.append(torch._neg_view(torch.randn(5000, generator=generator)))
    assert tensors[-1].is_neg()
    assert sum_of_squares(tensors) == pytest.approx(exact(tensors), rel=2e-7)


@pytest.mark.parametrize("numel", [3, 100_000])
def test_zeros_without_memory(numel: int) -> None:
    zeros = torch._efficientzerotensor((numel,))  # type: ignore[attr-defined]
    assert sum_of_squares([zeros, torch.ones(2)]) == pytest.approx(2.0)


@pytest.mark.parametrize("numel", [300, 70_000, 300_001])
def test_the_same_digits_wherever_the_numbers_lie(numel: int) -> None:
    values = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    memory = torch.empty(numel + 33)
    found = {float(fast_cpu.norm([memory[start : start + numel].copy_(values)], 2.0)) for start in range(33)}
    assert found == {float(fast_cpu.norm([values], 2.0))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_order_in_memory_costs_no_copy_and_no_digits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(64, 32, 9, 9, generator=generator).to(dtype)
    others = [dense.to(memory_format=torch.channels_last), dense.transpose(0, 3), dense.expand(2, 64, 32, 9, 9)]
    for other in others:
        assert not other.is_contiguous()
        assert sum_of_squares([other]) == pytest.approx(exact([other]), rel=1e-6)
    gaps = dense[:, ::2]
    assert sum_of_squares([gaps]) == pytest.approx(exact([gaps]), rel=1e-6)


@pytest.mark.parametrize("numel", [10, 100_000])
@pytest.mark.parametrize("bad", [1e30, math.inf, math.nan])
def test_what_is_not_finite_is_not_answered_and_gives_no_warning(bad: float, numel: int) -> None:
    values = torch.full((numel,), bad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fast_cpu.norm([torch.ones(10), values], 2.0).isnan()
        assert fast_cpu.norms([torch.ones(10), values], 2.0).isnan().tolist() == [False, True]


@pytest.mark.parametrize("numel", [10, 100_000])
def test_squares_that_lose_digits_are_not_answered_but_zeros_are(numel: int) -> None:
    tiny, zeros = torch.full((numel,), 1e-22), torch.zeros(numel)
    assert fast_cpu.norm([tiny, zeros], 2.0).isnan()
    assert fast_cpu.norms([tiny, zeros], 2.0).isnan().tolist() == [True, False]
    large = [torch.ones(NUMEL_OF_NO_HURRY + 1), tiny, zeros]
    assert local_norms(large, 2.0).tolist() == pytest.approx([math.sqrt(exact([one])) for one in large], rel=1e-6)


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


def test_of_several_kinds_each_is_added_up_its_own_way() -> None:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(300, 400, generator=generator)
    tensors = [dense, dense.clone().t(), dense.bfloat16(), dense.double(), dense.half()[:, ::2]]
    assert not tensors[1].is_contiguous()
    assert not tensors[4].is_contiguous()
    assert float(total_norm(tensors)) == pytest.approx(math.sqrt(exact(tensors)), rel=1e-6)


@pytest.mark.parametrize("numels", [[], [3], [5, CACHED_NUMEL], [7, 1, CACHED_NUMEL], [9, 2, CACHED_NUMEL - 1, 1]])
def test_what_is_still_cached_comes_first_and_nothing_is_lost(numels: list[int]) -> None:
    tensors = [torch.zeros(1).expand(numel) for numel in numels]
    ordered = still_cached_first(tensors)
    assert sorted(map(id, ordered)) == sorted(map(id, tensors))
    if sum(numels) > CACHED_NUMEL:
        assert ordered[0] is next(one for one in tensors if one.numel() >= CACHED_NUMEL - 1)
