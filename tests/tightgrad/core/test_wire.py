"""Messages of several payloads: sizes are known on both sides, and nothing is trusted."""

import pytest
import torch

import tightgrad as tg
from tightgrad.codecs import IntBlock, TopK
from tightgrad.core.types import GradSpec
from tightgrad.core.wire import from_bytes, to_bytes

CPU = torch.device("cpu")


def test_wide_dtypes_may_start_at_any_byte():
    """Float32 scales follow an odd number of packed bytes."""
    codec = IntBlock(bits=8, block_size=8)
    flats = [torch.randn(numel) for numel in (1, 3, 5, 8, 13)]
    payloads = [codec.encode(flat, GradSpec.of("x", flat), torch.Generator()) for flat in flats]
    received = from_bytes(to_bytes(payloads, CPU), codec, [payload.spec for payload in payloads])
    for sent, got in zip(payloads, received, strict=True):
        assert torch.equal(codec.decode(got), codec.decode(sent))


def test_what_is_received_shares_no_memory_with_the_message():
    codec = IntBlock()
    payload = codec.encode(torch.ones(9), GradSpec("x", (9,), 9), torch.Generator())
    message = to_bytes([payload], CPU)
    (received,) = from_bytes(message, codec, [payload.spec])
    message.zero_()
    assert torch.equal(codec.decode(received), codec.decode(payload))


def test_no_payloads_are_no_bytes():
    assert to_bytes([], CPU).shape == (0,)
    assert from_bytes(torch.empty(0, dtype=torch.uint8), TopK(0.1), []) == []


def test_a_wrong_length_says_which_codec_and_how_long():
    with pytest.raises(tg.PayloadError, match=r"int_block has 3 elements of torch.uint8, expected 13 bytes"):
        from_bytes(torch.zeros(3, dtype=torch.uint8), IntBlock(), [GradSpec("x", (9,), 9)])
