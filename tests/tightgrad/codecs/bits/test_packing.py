"""Bits and sorted indices, there and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tightgrad as tg
from tightgrad.codecs.bits import packing


@given(st.data(), st.integers(0, 62), st.integers(0, 70))
def test_bits_round_trip(data, bits, numel):
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=numel, max_size=numel))
    values = torch.tensor(numbers, dtype=torch.int64)
    packed = packing.pack_bits(values, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packing.packed_nbytes(numel, bits),)
    assert packing.unpack_bits(packed, numel, bits).tolist() == numbers


@given(st.data(), st.integers(1, 3_000))
def test_indices_round_trip_at_the_predicted_size(data, numel):
    count = data.draw(st.integers(0, min(numel, 60)))
    chosen = sorted(data.draw(st.sets(st.integers(0, numel - 1), min_size=count, max_size=count)))
    low, high = packing.pack_indices(torch.tensor(chosen, dtype=torch.int64), numel)
    assert (low.numel(), high.numel()) == packing.index_nbytes(numel, count)
    assert packing.unpack_indices(low, high, numel, count).tolist() == chosen


@pytest.mark.parametrize("numel", [1, 2, 7, 8, 9, 255, 256, 257])
def test_all_indices_round_trip(numel):
    everything = torch.arange(numel)
    low, high = packing.pack_indices(everything, numel)
    assert torch.equal(packing.unpack_indices(low, high, numel, numel), everything)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.01, 0.001])
def test_an_index_costs_what_the_module_says(density):
    numel = 1_000_000
    count = round(density * numel)
    bits = 8 * sum(packing.index_nbytes(numel, count)) / count
    assert bits <= 2 + torch.tensor(1 / density).log2().item() + 0.01


@given(st.binary(min_size=20, max_size=20), st.integers(1, 200), st.integers(1, 12))
def test_damaged_indices_are_an_error_or_valid_indices(raw, numel, count):
    count = min(count, numel)
    sizes = packing.index_nbytes(numel, count)
    stream = torch.frombuffer(bytearray(raw * 40), dtype=torch.uint8)
    low, high = stream[: sizes[0]], stream[sizes[0] : sum(sizes)]
    try:
        indices = packing.unpack_indices(low, high, numel, count)
    except tg.PayloadError:
        return
    assert indices.shape == (count,)
    assert bool((indices[1:] > indices[:-1]).all())
    assert 0 <= int(indices[0]) <= int(indices[-1]) < numel
