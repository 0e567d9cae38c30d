"""What each codec decodes, number by number, and which settings it refuses. The rest is in tests/conformance."""

import pytest
import torch

import tightgrad as tg
from tightgrad.codecs import Cast, IntBlock, TopK
from tightgrad.core.types import GradSpec


def there_and_back(codec, values):
    flat = torch.tensor(values)
    return codec.decode(codec.encode(flat, GradSpec.of("x", flat), torch.Generator().manual_seed(0))).tolist()


def test_cast_rounds_to_nearest_even():
    assert there_and_back(Cast("bfloat16"), [1.0, 1.00390625, 1.01171875, -3e38]) == [
        1.0,
        1.0,
        1.015625,
        pytest.approx(-3e38, rel=2**-8),
    ]
    assert there_and_back(Cast("float16"), [65504.0, 1e5, 1e-9]) == [65504.0, float("inf"), 0.0]


def test_int_block_has_one_scale_a_block():
    codec = IntBlock(bits=8, block_size=8)
    values = [127.0, 1.4, -1.6, 0, 0, 0, 0, 0, 12_700.0, 149.0, -151.0]
    assert there_and_back(codec, values) == [127.0, 1.0, -2.0, 0, 0, 0, 0, 0, 12_700.0, 100.0, -200.0]


def test_int_block_of_four_bits_has_fifteen_levels():
    values = [float(value) for value in range(-7, 8)]
    assert there_and_back(IntBlock(bits=4, block_size=16), values) == values


def test_topk_keeps_the_largest_of_either_sign_in_place():
    assert there_and_back(TopK(0.5), [1.0, -4.0, 0.5, 2.0, -0.25, 3.0]) == [0, -4.0, 0, 2.0, 0, 3.0]


@pytest.mark.parametrize(("numel", "count"), [(0, 0), (1, 1), (3, 1), (100, 1), (150, 2), (1000, 10)])
def test_topk_keeps_at_least_one(numel, count):
    assert TopK(0.01).count(numel) == count


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Cast("float8"), "dtype='float8'.*'float16', 'bfloat16'"),
        (lambda: IntBlock(bits=3), "bits=3.*8, 4"),
        (lambda: IntBlock(bits=8.0), "bits=8.0.*8, 4"),
        (lambda: IntBlock(block_size=4), "block_size=4 must be at least 8"),
        (lambda: IntBlock(rounding="up"), "rounding='up'"),
        (lambda: TopK(0.0), "density=0 must be above 0"),
        (lambda: TopK(1.5), "density=1.5 must be .*at most 1"),
        (lambda: TopK(0.1, values=TopK(0.5)), "values=.*scope element or block"),
        (lambda: TopK(0.1, values=None), "values=None"),
        (lambda: TopK(0.1, values=tg.clip.Value(1.0)), "values=Value.*must be a codec"),
        (lambda: TopK(0.1, values=tg.reducers.Dense()), "values=Dense.*must be a codec"),
        (lambda: TopK(0.1, values=Cast), "values=.*must be a codec"),
    ],
)
def test_settings_out_of_bounds(make, words):
    with pytest.raises(tg.ConfigError, match=words):
        make()
