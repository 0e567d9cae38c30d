"""Elias gamma code."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tightgrad.codecs.bits.entropy import pack_gamma, unpack_gamma
from tightgrad.core.errors import PayloadError


@settings(max_examples=200)
@given(values=st.lists(st.integers(1, 2**40), max_size=60))
def test_round_trip(values: list[int]) -> None:
    tensor = torch.tensor(values, dtype=torch.int64)
    assert torch.equal(unpack_gamma(pack_gamma(tensor), len(values)), tensor)


def test_size_is_that_of_the_gamma_code() -> None:
    values = torch.tensor([1, 2, 3, 4, 255, 256] * 8)
    num_bits = sum(2 * (int(value).bit_length() - 1) + 1 for value in values)
    assert 8 * pack_gamma(values).numel() - num_bits < 16  # two streams, each filled up to a byte


def test_bits_by_hand() -> None:
    """1 is "1", 3 is "01" and the low bit 1: unary parts first, low bits after them."""
    assert pack_gamma(torch.tensor([1, 3])).tolist() == [0b101, 0b1]


@settings(max_examples=300)
@given(raw=st.binary(max_size=40), count=st.integers(0, 50))
def test_any_bytes_decode_or_raise(raw: bytes, count: int) -> None:
    packed = torch.tensor(list(raw), dtype=torch.uint8)
    try:
        values = unpack_gamma(packed, count)
    except PayloadError:
        return
    assert values.shape == (count,)
    assert bool((values >= 1).all())


def test_a_huge_count_is_refused_before_anything_is_made() -> None:
    with pytest.raises(PayloadError, match="cannot hold"):
        unpack_gamma(torch.zeros(4, dtype=torch.uint8), 2**50)
