"""Many sparse tensors in one message: the same bytes and the same entries as one by one, and damage is found."""

import pytest
import torch

from tightgrad.codecs import Cast, ChunkedTopK, DensityWarmup, IntBlock, TopK
from tightgrad.codecs.bits.sparse import Sparse
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec
from tightgrad.core.wire import from_bytes, to_bytes

NUMELS = (384, 70_000, 7, 1_152, 256, 33_000, 1_000)
CODECS = [
    TopK(0.001, values=IntBlock(4)),
    TopK(0.01, values=IntBlock(8, block_size=16)),
    TopK(0.02, values=IntBlock(2)),
    TopK(0.05),
    TopK(0.1, values=Cast("float32")),
    ChunkedTopK(256, 2, values=IntBlock(4, block_size=32)),
    DensityWarmup(TopK(0.001, values=IntBlock(4)), start=0.1, steps=10),
]


def tensors() -> tuple[list[torch.Tensor], list[GradSpec]]:
    generator = torch.Generator().manual_seed(3)
    flats = [torch.randn(numel, generator=generator) for numel in NUMELS]
    specs = [GradSpec.of(f"p{index}", flat, seed=index) for index, flat in enumerate(flats)]
    return flats, specs


def generator_of(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(name[1:]))


def one_by_one(codec: Codec) -> torch.Tensor:
    flats, specs = tensors()
    payloads = [codec.encode(flat, spec, generator_of(spec.name)) for flat, spec in zip(flats, specs, strict=True)]
    return to_bytes(payloads, torch.device("cpu"))


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_the_same_bytes_and_entries_as_one_by_one(codec: Codec) -> None:
    flats, specs = tensors()
    chosen = codec.choose(specs[0]) if isinstance(codec, DensityWarmup) else codec
    assert isinstance(chosen, Sparse)
    assert chosen.goes_together(specs), "these settings have the fast path"
    together = codec.encode_all(flats, specs, generator_of)
    assert torch.equal(together, one_by_one(codec))
    totals = [torch.ones_like(flat) for flat in flats]
    codec.add_all_to_(totals, together, specs)
    for total, payload in zip(totals, from_bytes(together, codec, specs), strict=True):
        expected = torch.ones_like(total)
        codec.add_to_(expected, payload)
        assert torch.equal(total, expected)
    codec.add_all_to_(totals, together, specs, alpha=-1)
    assert all(torch.allclose(total, torch.ones_like(total), atol=1e-6) for total in totals)


@pytest.mark.parametrize(
    "codec", [TopK(0.01, values=IntBlock(4, rounding="stochastic")), TopK(0.5), IntBlock(4)], ids=repr
)
def test_without_the_fast_path_the_message_is_that_of_the_payloads(codec: Codec) -> None:
    flats, specs = tensors()
    message = codec.encode_all(flats, specs, generator_of)
    assert torch.equal(message, one_by_one(codec))
    left = [flat.clone() for flat in flats]
    codec.add_all_to_(left, message, specs, alpha=-1)
    for value, flat, payload in zip(left, flats, from_bytes(message, codec, specs), strict=True):
        assert torch.equal(value, flat - codec.decode(payload))


def test_a_damaged_message_is_a_payload_error_or_decodes_within_bounds() -> None:
    codec = CODECS[0]
    flats, specs = tensors()
    message = codec.encode_all(flats, specs, generator_of)
    with pytest.raises(PayloadError, match="bytes"):
        codec.decode_all(message[:-1], specs)
    draw = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(300):
        damaged = message.clone()
        place = int(torch.randint(len(message), (1,), generator=draw))
        damaged[place] ^= 1 << int(torch.randint(8, (1,), generator=draw))
        expected: object = None
        try:
            for payload in from_bytes(damaged, codec, specs):
                codec.decode(payload)
        except PayloadError:
            expected = PayloadError
        try:
            found = codec.decode_all(damaged, specs)
        except PayloadError:
            refused += 1
            assert expected is PayloadError
            continue
        assert expected is None, "what one by one refuses is refused together"
        assert [tensor.numel() for tensor in found] == list(NUMELS)
    assert refused > 20
