"""The mathematics that a codec's card and properties promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conformance.cases import CODECS
from conformance.inputs import INPUTS, normal
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec

NUM_SEEDS = 2_000
# 64 elements, a handful of codecs: under the null the largest of 1,000 |z| exceeds 5.5 with probability 4e-5.
MOST_STANDARD_ERRORS = 5.5

UNBIASED = [codec for codec in CODECS if codec.unbiased]
CONTRACTING = [codec for codec in CODECS if codec.contraction(256) > 0]


def decoded(codec: Codec, flat: Tensor, seed: int = 0, shared_seed: int = 0) -> Tensor:
    spec = GradSpec.of("weight", flat, seed=shared_seed)
    return codec.decode(codec.encode(flat, spec, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("codec", UNBIASED, ids=repr)
@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_unbiased(codec: Codec, scale: float) -> None:
    flat = normal(64, seed=3) * scale
    flat[5], flat[6] = 0.0, flat.abs().max()  # an exact level, and the edge of the range
    draws = torch.stack([decoded(codec, flat, seed, seed) for seed in range(NUM_SEEDS)]).double() / scale
    exact = flat.double() / scale
    error = draws.mean(dim=0) - exact
    standard_error = draws.std(dim=0) / math.sqrt(NUM_SEEDS)
    # Where every draw is the same, that value may be off by float32 rounding of scale, quotient and product.
    rounding = 4 * 2.0**-24 * exact.abs()
    assert bool((error.abs() <= MOST_STANDARD_ERRORS * standard_error + rounding).all())
    assert bool((draws.std(dim=0) > 0).any()), "nothing was random, so nothing was tested"


@pytest.mark.parametrize("codec", [codec for codec in CODECS if not (codec.unbiased or codec.card.unbiased)], ids=repr)
def test_biased_codecs_use_no_randomness(codec: Codec) -> None:
    assert torch.equal(decoded(codec, INPUTS["odd"], 1), decoded(codec, INPUTS["odd"], 2))


def assert_contracts(codec: Codec, flat: Tensor, seed: int = 0) -> None:
    x = flat.double()
    left = (x - decoded(codec, flat, seed).double()).square().sum()
    delta = codec.contraction(flat.numel())
    assert 0.0 <= delta <= 1.0
    # The claim is about exact arithmetic; float32 scales and products err by a few 2^-24 of each element.
    slack = (4 * 2.0**-24) ** 2 + 8 * 2.0**-24 * math.sqrt(1 - delta)
    assert float(left) <= (1 - delta + slack) * float(x.square().sum())


@pytest.mark.parametrize("codec", CONTRACTING, ids=repr)
@pytest.mark.parametrize("name", [name for name in INPUTS if name != "denormal"])
def test_contraction_on_awkward_inputs(codec: Codec, name: str) -> None:
    """Denormal inputs are left out: their relative precision is lost before any codec sees them."""
    if codec.contraction(INPUTS[name].numel()) > 0:
        assert_contracts(codec, INPUTS[name])


@pytest.mark.parametrize("codec", CONTRACTING, ids=repr)
@settings(max_examples=60)
@given(
    values=st.lists(
        st.floats(-(2.0**50), 2.0**50, width=32).filter(lambda value: value == 0 or abs(value) > 2.0**-50),
        min_size=1,
        max_size=80,
    ),
    seed=st.integers(0, 3),
)
def test_contraction(codec: Codec, values: list[float], seed: int) -> None:
    flat = torch.tensor(values)
    if codec.contraction(flat.numel()) > 0:
        assert_contracts(codec, flat, seed)


def test_the_claims_are_tested_at_all() -> None:
    assert len(UNBIASED) >= 2
    assert len(CONTRACTING) >= 4
