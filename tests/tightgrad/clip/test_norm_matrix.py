"""The norm against numpy in extended precision: every dtype, magnitude, shape and p."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tightgrad.clip.fast_cpu import NUMEL_OF_NO_HURRY
from tightgrad.clip.norm import tensor_norms, total_norm

SHAPES = ((3,), (35_000,), (40, 3, 3), (300, 113), ())
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALES = (1e-300, 1e-200, 1e-42, 1e-30, 1e-18, 1e-8, 1.0, 3e3, 1e18, 1e30, 1e200, 1e290)
REPRESENTABLE = [
    (dtype, scale)
    for dtype, scale in itertools.product(DTYPES, SCALES)
    if 8 * scale < torch.finfo(dtype).max and (dtype is torch.float64 or scale > 1e-45)
]
POWERS = (0.0, 0.5, 1.0, 2.0, 3.0, 7.0, 20.0, math.inf)


def reference(tensors: list[Tensor], p: float) -> float:
    entries = np.abs(np.concatenate([tensor.double().numpy().ravel() for tensor in tensors]).astype(np.longdouble))
    if p == 0:
        return float((entries != 0).sum())
    largest = entries.max()
    if math.isinf(p) or largest == 0:
        return float(largest)
    return float(largest * raised(entries / largest, p).sum() ** (1 / np.longdouble(p)))


def raised(entries: np.ndarray, p: float) -> np.ndarray:
    """Entries to the power p by multiplications: the function for any power takes most of the time of these tests."""
    if p == 0.5:
        return np.sqrt(entries)
    assert p.is_integer()
    found = np.ones_like(entries)
    for bit in f"{int(p):b}":
        found = found * found * entries if bit == "1" else found * found
    return found


def of_parts(norms: list[float], p: float) -> float:
    """The norm over all tensors from that of each: the reference is the dear part of these tests."""
    return sum(norms) if p == 0 else reference([torch.tensor(norms, dtype=torch.float64)], p)


def in_float32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


@functools.lru_cache(maxsize=1)
def drawn(scale: float, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, dtype=torch.float64, generator=generator) * scale).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize(("dtype", "scale"), REPRESENTABLE)
def test_any_dtype_and_magnitude(dtype: torch.dtype, scale: float, p: float) -> None:
    tensors = drawn(scale, dtype)
    norm = total_norm(tensors, p)
    is_wide = dtype is torch.float64
    assert (norm.dtype, norm.shape) == (torch.float64 if is_wide else torch.float32, ())
    # 0.5e-6 from the float32 sums of at most 512 (32768 random) terms, half a unit of the last place from rounding.
    bounds = {"rel": 1e-12, "abs": 0.0} if is_wide else {"rel": 1e-6, "abs": 2.0**-149}
    rounded = float if is_wide else in_float32
    expected = [reference([tensor], p) for tensor in tensors]
    assert float(norm) == pytest.approx(rounded(of_parts(expected, p)), **bounds)
    assert tensor_norms(tensors, p).tolist() == pytest.approx([*map(rounded, expected)], **bounds)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("numel", [30_000, 32_768])
def test_squares_of_few_bits_do_not_drift(numel: int, dtype: torch.dtype) -> None:
    """One float32 sum over 30,000 of them was 2e-6 off; a GPU's norm in float64 brought it to light."""
    tensor = torch.randn(numel, generator=torch.Generator().manual_seed(0)).to(dtype)
    others = [torch.randn(200_003).to(dtype)]
    expected = in_float32(reference([tensor], 2.0))
    assert float(tensor_norms([tensor, *others])[0]) == pytest.approx(expected, rel=3e-7)


@pytest.mark.parametrize("numel", [100_000, 2_500_000])
def test_equal_numbers_do_not_drift(numel: int) -> None:
    """One float32 sum over 2.5 million equal numbers is 0.2 % off."""
    tensor = torch.full((numel,), 0.7123)
    assert float(total_norm([tensor])) == pytest.approx(0.7123 * math.sqrt(numel), rel=1e-6)
    assert float(total_norm([tensor], 1.0)) == pytest.approx(0.7123 * numel, rel=4e-6)


@pytest.mark.parametrize(("large", "small"), list(itertools.product([1e30, 1e-30, 0.0], [1e-30, 1.0])))
def test_mixed_magnitudes(large: float, small: float) -> None:
    tensors = [torch.full((NUMEL_OF_NO_HURRY,), large), torch.full((10, 10), small)]
    assert float(total_norm(tensors)) == pytest.approx(reference(tensors, 2.0), rel=1e-6)


@pytest.mark.parametrize("numel", [10, 2 * NUMEL_OF_NO_HURRY])
@pytest.mark.parametrize("p", [1.0, 2.0, 7.0, math.inf])
def test_inf_and_nan_come_through(p: float, numel: int) -> None:
    tensor = torch.ones(numel)
    tensor[3] = -math.inf
    assert float(total_norm([tensor], p)) == math.inf
    tensor[4] = math.nan
    assert math.isnan(float(total_norm([tensor], p)))
    assert math.isnan(float(tensor_norms([torch.ones(2), tensor], p)[1]))


def test_a_storage_counts_once() -> None:
    weight = torch.full((4,), 3.0)
    assert float(total_norm([weight, weight, weight[:], weight.view(2, 2)])) == 6.0
    assert float(total_norm([weight[:2], weight[2:]])) == 6.0


def test_sparse_duplicates_are_added_up_first() -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[1, 1]]), torch.tensor([[1.0], [2.0]]), (5, 1), check_invariants=True
    )
    assert float(total_norm([sparse, torch.tensor([4.0])])) == 5.0
    assert tensor_norms([sparse, torch.tensor([4.0])]).tolist() == [3.0, 4.0]


def test_strided_and_complex() -> None:
    base = torch.randn(600, 300, generator=torch.Generator().manual_seed(0))
    assert float(total_norm([base.t()])) == pytest.approx(float(base.double().norm()), rel=1e-6)
    assert float(total_norm([base[::2, 1:]])) == pytest.approx(float(base[::2, 1:].double().norm()), rel=1e-6)
    assert float(total_norm([torch.tensor([3 + 4j, 0j])])) == 5.0
