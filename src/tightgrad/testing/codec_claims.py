"""The mathematics that a codec's card and properties promise."""

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec
from tightgrad.testing.checks import Checks, for_all
from tightgrad.testing.inputs import INPUTS, normal

CODEC_CLAIMS = Checks()
NUM_SEEDS = 2_000
# 64 elements, a handful of codecs: under the null the largest of 1,000 |z| exceeds 5.5 with probability 4e-5.
MOST_STANDARD_ERRORS = 5.5


def decoded(codec: Codec, flat: Tensor, seed: int = 0, shared_seed: int = 0) -> Tensor:
    """Encode and decode, with random numbers of these seeds."""
    spec = GradSpec.of("weight", flat, seed=shared_seed)
    return codec.decode(codec.encode(flat, spec, torch.Generator().manual_seed(seed)))


def is_unbiased(codec: Codec) -> bool:
    """Return whether it claims that errors cancel."""
    return codec.unbiased


def contracts(codec: Codec) -> bool:
    """Return whether it bounds what it leaves out."""
    return codec.contraction(256) > 0


@CODEC_CLAIMS.add(variants={"1.0": 1.0, "1e-20": 1e-20, "1e+20": 1e20}, applies=is_unbiased)
def check_unbiased(codec: Codec, scale: float) -> None:
    """Check that the mean of many draws is the input, to a few standard errors."""
    flat = normal(64, seed=3) * scale
    flat[5], flat[6] = 0.0, flat.abs().max()  # an exact level, and the edge of the range
    draws = torch.stack([decoded(codec, flat, seed, seed) for seed in range(NUM_SEEDS)]).double() / scale
    exact = flat.double() / scale
    error = draws.mean(dim=0) - exact
    standard_error = draws.std(dim=0) / math.sqrt(NUM_SEEDS)
    # Where every draw is the same, that value may be off by float32 rounding of scale, quotient and product.
    rounding = 4 * 2.0**-24 * exact.abs()
    excess = error.abs() - MOST_STANDARD_ERRORS * standard_error - rounding
    worst = int(excess.argmax())
    assert bool((excess <= 0).all()), (
        f"unbiased is claimed, and the mean of {NUM_SEEDS} draws of an element is off by {float(error[worst]):.3g}, "
        f"its standard error being {float(standard_error[worst]):.3g}"
    )
    assert bool((draws.std(dim=0) > 0).any()), "nothing was random, so nothing was tested"


@CODEC_CLAIMS.add(applies=lambda codec: not (codec.unbiased or codec.card.unbiased))
def check_biased_codecs_use_no_randomness(codec: Codec) -> None:
    """Check that a codec that is biased with any settings draws no random numbers, from which it gains nothing."""
    assert torch.equal(decoded(codec, INPUTS["odd"], 1), decoded(codec, INPUTS["odd"], 2)), (
        "the card says that the codec is biased, and what it decodes depends on the generator"
    )


def assert_contracts(codec: Codec, flat: Tensor, seed: int = 0) -> None:
    """Raise an AssertionError if more is left out than `contraction` allows."""
    x = flat.double()
    left = (x - decoded(codec, flat, seed).double()).square().sum()
    delta = codec.contraction(flat.numel())
    assert 0.0 <= delta <= 1.0, (
        f"contraction({flat.numel()}) is {delta:.9g}, expected the kept share of ||x||^2, in [0, 1]; 0 claims nothing"
    )
    # The claim is about exact arithmetic; float32 scales and products err by a few 2^-24 of each element.
    slack = (4 * 2.0**-24) ** 2 + 8 * 2.0**-24 * math.sqrt(1 - delta)
    assert float(left) <= (1 - delta + slack) * float(x.square().sum()), (
        f"contraction({flat.numel()}) claims {delta:.4g}, and of ||x||^2 = {float(x.square().sum()):.4g} a part of "
        f"{float(left):.4g} is left out"
    )


@CODEC_CLAIMS.add(variants={name: flat for name, flat in INPUTS.items() if name != "denormal"}, applies=contracts)
def check_contraction_on_awkward_inputs(codec: Codec, flat: Tensor) -> None:
    """Check the claim on tensors that are hard to encode.

    Denormal inputs are left out: their relative precision is lost before any codec sees them.
    """
    if codec.contraction(flat.numel()) > 0:
        assert_contracts(codec, flat)


@CODEC_CLAIMS.add(applies=contracts)
def check_contraction(codec: Codec) -> None:
    """Check that the claim holds for any values."""
    finite = st.floats(-(2.0**50), 2.0**50, width=32).filter(lambda value: value == 0 or abs(value) > 2.0**-50)

    def for_values(values: list[float], seed: int) -> None:
        flat = torch.tensor(values)
        if codec.contraction(flat.numel()) > 0:
            assert_contracts(codec, flat, seed)

    for_all(for_values, values=st.lists(finite, min_size=1, max_size=80), seed=st.integers(0, 3))
