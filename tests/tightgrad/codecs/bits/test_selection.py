"""The fast selection is exactly that of a full sort."""

import pytest
import torch

from tightgrad.codecs.bits.selection import SHORT_NUMEL, above, largest


@pytest.mark.parametrize("numel", [1, 300, SHORT_NUMEL + 1, 100_003, 700_000])
@pytest.mark.parametrize("density", [1e-5, 0.001, 0.01, 0.3, 1.0])
def test_same_entries_as_topk(numel: int, density: float) -> None:
    flat = torch.randn(numel, generator=torch.Generator().manual_seed(numel))
    count = max(1, round(density * numel))
    expected = flat.abs().topk(count).indices.sort().values
    assert torch.equal(largest(flat, count), expected)


@pytest.mark.parametrize("where", ["head", "tail", "one block"])
def test_large_entries_side_by_side(where: str) -> None:
    """All in few blocks, which is the hard case for a choice by block maxima."""
    flat = torch.randn(200_003, generator=torch.Generator().manual_seed(1)) * 0.01
    count = 200
    start = {"head": 0, "tail": 200_003 - count, "one block": 64 * 1000}[where]
    flat[start : start + count] += 5.0
    assert torch.equal(largest(flat, count), torch.arange(start, start + count))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_give_as_many_and_always_the_same(value: float) -> None:
    flat = torch.full((100_000,), value)
    first = largest(flat, 123)
    assert first.numel() == first.unique().numel() == 123
    assert torch.equal(first, largest(flat, 123))


def test_nan_does_not_break_the_count() -> None:
    flat = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    flat[::7] = torch.nan
    assert largest(flat, 50).numel() == 50


def test_above_keeps_what_reaches_the_threshold_but_no_zeros() -> None:
    flat = torch.tensor([0.0, -2.0, 1.0, 0.5, 2.0])
    assert above(flat, torch.tensor(1.0)).tolist() == [1, 2, 4]
    assert above(flat, torch.tensor(0.0)).tolist() == [1, 2, 3, 4]
    assert above(torch.empty(0), torch.tensor(1.0)).numel() == 0
