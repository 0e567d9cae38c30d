"""Several tensors in one go: the same bytes, and the same values, as one after the other."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tightgrad.codecs import FP8, Cast, IntBlock, PerTensor, SizeAdaptive
from tightgrad.codecs.bits.pieces import PIECE_NUMEL, SHORT_NUMEL
from tightgrad.codecs.bits.together import Together
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec
from tightgrad.testing.codec_checks import one_by_one

TOGETHER: tuple[Codec, ...] = (
    IntBlock(bits=8),
    IntBlock(bits=4, block_size=32),
    IntBlock(bits=2, block_size=12),
    FP8("e4m3", block_size=16),
    FP8("e5m2"),
    Cast("bfloat16"),
    Cast("float32"),
    SizeAdaptive(IntBlock(bits=4, block_size=32), threshold=100),
    PerTensor((("0", Cast("bfloat16")),), default=IntBlock(bits=8)),
)
every_codec = pytest.mark.parametrize("codec", TOGETHER, ids=repr)


def specs_of(numels: Sequence[int]) -> list[GradSpec]:
    """Every third is a vector, the others matrices."""
    return [GradSpec(str(i), (n,) if i % 3 == 0 else (1, n), n) for i, n in enumerate(numels)]


def tensors(numels: Sequence[int], scale: float = 1.0) -> list[Tensor]:
    return [scale * torch.randn(n, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(numels)]


def generator_of(name: str) -> torch.Generator:
    return torch.Generator()


def check(codec: Codec, flats: list[Tensor], specs: list[GradSpec]) -> None:
    wanted, values = one_by_one(codec, flats, specs)
    message = codec.encode_all(flats, specs, generator_of)
    assert torch.equal(message, wanted)
    decoded = codec.decode_all(message, specs)
    for found, value, spec in zip(decoded, values, specs, strict=True):
        assert found.dtype == spec.dtype
        assert torch.equal(found, value), spec


@every_codec
@given(numels=st.lists(st.integers(0, 300), min_size=1, max_size=9), scale=st.sampled_from([1.0, 1e-30, 1e-42, 0.0]))
def test_short_tensors(codec: Codec, numels: list[int], scale: float) -> None:
    check(codec, tensors(numels, scale), specs_of(numels))


@every_codec
def test_long_tensors_among_short_ones(codec: Codec) -> None:
    numels = [70, PIECE_NUMEL + 31, 5, 700_000, 255, PIECE_NUMEL - 3, 1, 64, *range(130, 150)]
    check(codec, tensors(numels), specs_of(numels))


@every_codec
def test_long_tensors_go_one_by_one(codec: Codec) -> None:
    numels = [SHORT_NUMEL + 1, SHORT_NUMEL]
    message, _ = one_by_one(codec, tensors(numels), specs_of(numels))
    if isinstance(codec, Together):  # a choice lets each of its codecs decide
        assert not codec.goes_together(specs_of(numels))
    assert torch.equal(codec.encode_all(tensors(numels), specs_of(numels), generator_of), message)


@every_codec
def test_nothing_is_shared_with_the_input_or_the_message(codec: Codec) -> None:
    numels = [70, 300]
    flats, specs = tensors(numels), specs_of(numels)
    message = codec.encode_all(flats, specs, generator_of)
    decoded = codec.decode_all(message, specs)
    before = [tensor.clone() for tensor in decoded]
    message.zero_()
    assert all(torch.equal(one, other) for one, other in zip(decoded, before, strict=True))
    for tensor in decoded:
        tensor.fill_(7.0)
    assert all(torch.equal(flat, fresh) for flat, fresh in zip(flats, tensors(numels), strict=True))


@every_codec
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(codec: Codec, change: int) -> None:
    specs = specs_of([70, 300])
    message = codec.encode_all(tensors([70, 300]), specs, generator_of)
    with pytest.raises(PayloadError, match="bytes"):
        codec.decode_all(torch.nn.functional.pad(message, (0, change)), specs)


def test_what_draws_random_numbers_goes_one_by_one() -> None:
    codec = IntBlock(bits=8, rounding="stochastic")
    assert not codec.goes_together(specs_of([70, 300]))
