"""The codecs through torch.compile, here into C++: the same kernels that it makes for a GPU, in another language.

What is decoded is the same to the bit, and so is what is encoded, but for scales that are sums (of `Sign`, and of a
rotation or transform), which a compiler adds in another order.
"""

import pytest
import torch
import torch._dynamo as dynamo
from torch import Tensor

from support.waiting import patience
from tightgrad.codecs import (
    FP8,
    QSGD,
    Cast,
    ChunkedTopK,
    DCTTopK,
    Hadamard,
    IntBlock,
    Natural,
    RandomK,
    Sign,
    TernGrad,
    TopK,
)
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec
from tightgrad.testing.inputs import normal

# torch's own: its compiler imports what it has deprecated, and says where it leaves a part to Python.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo :UserWarning"),
]

NUMEL = 3_001  # whole blocks and a shorter last one
SAME = (
    Cast("bfloat16"),
    FP8("e4m3"),
    FP8("e5m2"),
    IntBlock(8),
    IntBlock(4),
    IntBlock(2),
    IntBlock(4, rounding="stochastic"),
    QSGD(7, norm="max"),
    TernGrad(),
    Natural(),
    TopK(0.01, values=IntBlock(4)),
    ChunkedTopK(512, 8),
    RandomK(0.05),
)
SUMS = (Sign(), Hadamard(IntBlock(8)), DCTTopK(64, 8))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def compiled(function, *args):
    """What it returns; fails unless something was compiled."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    result = torch.compile(function)(*args)
    assert dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert dynamo.utils.counters["inductor"], "nothing reached the compiler"
    return result


def encoded(codec: Codec) -> tuple[Tensor, GradSpec]:
    flat = normal(NUMEL)
    return flat, GradSpec.of("weight", flat, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(patience(900))
@pytest.mark.parametrize("codec", [*SAME, *SUMS], ids=repr)
def test_a_compiled_decoder_gives_the_same_bits(codec: Codec) -> None:
    flat, spec = encoded(codec)
    payload = codec.encode(flat, spec, generator())
    assert torch.equal(compiled(codec.decode, payload), codec.decode(payload))


@pytest.mark.slow
@pytest.mark.timeout(patience(900))
@pytest.mark.parametrize("codec", SAME, ids=repr)
def test_a_compiled_encoder_gives_the_same_bytes(codec: Codec) -> None:
    flat, spec = encoded(codec)
    expected = codec.encode(flat, spec, generator())
    found = compiled(codec.encode, flat, spec, generator())
    assert all(map(torch.equal, found.tensors, expected.tensors))


@pytest.mark.slow
@pytest.mark.timeout(patience(900))
@pytest.mark.parametrize("codec", SUMS, ids=repr)
def test_a_compiled_encoder_that_adds_is_as_near(codec: Codec) -> None:
    flat, spec = encoded(codec)
    expected = codec.decode(codec.encode(flat, spec, generator()))
    found = codec.decode(compiled(codec.encode, flat, spec, generator()))
    level = float(expected.abs().max()) / 127  # of an 8-bit integer next to a boundary
    assert float((found - expected).abs().max()) <= level
    assert float((found - expected).norm() / expected.norm()) < 1e-3
