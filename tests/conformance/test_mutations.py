"""Smallest examples of damaged payloads that once got through; `tests/faults` draws the many."""

import pytest
import torch

from tightgrad.codecs import Cast, IntBlock, SampledThreshold, Threshold, TopK
from tightgrad.codecs.bits.sparse import count_bytes
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import Payload
from tightgrad.testing.codec_checks import encode
from tightgrad.testing.inputs import normal

CPU = torch.device("cpu")


def encoded(codec: Codec, numel: int = 100) -> Payload:
    return encode(codec, normal(numel), seed=0)


@pytest.mark.parametrize("codec", [Threshold(0.5), SampledThreshold(0.1)], ids=repr)
@pytest.mark.parametrize("count", [-(2**63), -2, 101, 2**31, 2**62, 2**63 - 1])
def test_a_count_that_cannot_be(codec: Codec, count: int) -> None:
    payload = encoded(codec)
    message = torch.cat([count_bytes(count, CPU), payload.tensors[0][8:]])
    with pytest.raises(PayloadError):
        codec.decode(Payload((message,), payload.spec))


@pytest.mark.parametrize("codec", [TopK(0.1), TopK(0.1, values=IntBlock(4))], ids=repr)
@pytest.mark.parametrize("byte", [0, 255])
def test_indices_out_of_bounds_or_order(codec: Codec, byte: int) -> None:
    payload = encoded(codec)
    high = torch.full_like(payload.tensors[1], byte)
    with pytest.raises(PayloadError, match="packed indices"):
        codec.decode(Payload((payload.tensors[0], high, *payload.tensors[2:]), payload.spec))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so_for_the_guard_to_see(value: float) -> None:
    """A NaN that was turned into a number on the way would be a silent wrong result."""
    codec = IntBlock(8, block_size=50)
    payload = encoded(codec)
    decoded = codec.decode(Payload((payload.tensors[0], torch.full((2,), value)), payload.spec))
    assert not bool(decoded[payload.tensors[0] != 0].isfinite().any())
    assert bool(
        Cast("float32").decode(Payload((torch.full((100,), value),), payload.spec)).isfinite().logical_not().all()
    )
