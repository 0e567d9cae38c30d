"""What every codec must do with any tensor."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conformance.cases import CODECS
from conformance.inputs import INPUTS, normal
from tightgrad import codecs
from tightgrad.core.config import method_from_config, to_config
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload
from tightgrad.core.wire import from_bytes, most_nbytes, to_bytes
from tightgrad.pipeline.registry import method

CPU = torch.device("cpu")

every_codec = pytest.mark.parametrize("codec", CODECS, ids=repr)
every_input = pytest.mark.parametrize("name", INPUTS)


def encode(codec: Codec, flat: Tensor, seed: int = 7) -> Payload:
    return codec.encode(flat, GradSpec.of("weight", flat), torch.Generator().manual_seed(seed))


def assert_size_is_predicted(codec: Codec, payload: Payload) -> None:
    predicted = codec.payload_nbytes(payload.spec)
    assert payload.nbytes <= most_nbytes(codec, payload.spec)
    assert predicted == payload.nbytes or (predicted is None and not codec.fixed_size)


def bits(tensors: tuple[Tensor, ...]) -> list[tuple[torch.dtype, bytes]]:
    return [(tensor.dtype, tensor.contiguous().view(torch.uint8).numpy().tobytes()) for tensor in tensors]


@every_codec
@every_input
def test_shape_dtype_size_and_finiteness(codec: Codec, name: str) -> None:
    flat = INPUTS[name]
    spec = GradSpec.of("weight", flat)
    payload = encode(codec, flat)
    assert payload.spec == spec
    assert_size_is_predicted(codec, payload)
    found = [(t.dtype, t.numel()) for t in payload.tensors]
    layout = codec.layout(spec)
    assert found == [(x.dtype, n if x.numel is None else x.numel) for x, (_, n) in zip(layout, found, strict=True)]
    decoded = codec.decode(payload)
    assert decoded.shape == flat.shape
    assert decoded.dtype == torch.float32
    # float16 rounds numbers above 65504 to inf, which the guard then sees; nothing else may.
    wire_dtypes = {layout.dtype for layout in codec.layout(spec)}
    overflows = [torch.finfo(d).max for d in wire_dtypes & {torch.float16, torch.bfloat16}]
    if not any(bool((flat.abs() > largest).any()) for largest in overflows):
        assert bool(torch.isfinite(decoded).all())


@every_codec
@every_input
def test_input_is_left_alone_and_output_is_new(codec: Codec, name: str) -> None:
    flat = INPUTS[name].clone()
    before = bits((flat,))
    payload = encode(codec, flat)
    decoded = codec.decode(payload)
    sent = bits(payload.tensors)
    decoded.fill_(7.0)
    flat.fill_(5.0)
    assert bits((INPUTS[name],)) == before
    assert bits(payload.tensors) == sent


@every_codec
def test_no_autograd_graph(codec: Codec) -> None:
    leaf = normal(100).requires_grad_()
    with torch.no_grad():
        payload = encode(codec, leaf)
        decoded = codec.decode(payload)
    for tensor in (*payload.tensors, decoded):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


@every_codec
@every_input
def test_same_generator_same_bytes(codec: Codec, name: str) -> None:
    first, second = encode(codec, INPUTS[name]), encode(codec, INPUTS[name])
    assert bits(first.tensors) == bits(second.tensors)


@every_codec
def test_the_global_generator_is_not_used(codec: Codec) -> None:
    before = torch.get_rng_state()
    encode(codec, normal(500))
    assert torch.equal(torch.get_rng_state(), before)


@every_codec
@every_input
def test_zeros_stay_zeros(codec: Codec, name: str) -> None:
    """No codec invents a gradient where there is none, not even for one element among others."""
    flat = INPUTS[name]
    decoded = codec.decode(encode(codec, flat))
    assert bool((decoded[flat == 0] == 0).all())


@every_codec
@every_input
def test_decode_is_add_to_zeros(codec: Codec, name: str) -> None:
    payload = encode(codec, INPUTS[name])
    total = torch.zeros_like(INPUTS[name])
    codec.add_to_(total, payload)
    assert torch.equal(total, codec.decode(payload))


@every_codec
def test_add_to_adds(codec: Codec) -> None:
    payload = encode(codec, INPUTS["odd"])
    total = normal(1_001, seed=9)
    expected = total + codec.decode(payload)
    codec.add_to_(total, payload)
    assert torch.equal(total, expected)


@every_codec
def test_bytes_round_trip(codec: Codec) -> None:
    payloads = [encode(codec, flat) for flat in INPUTS.values()]
    message = to_bytes(payloads, CPU)
    assert message.numel() == sum(payload.nbytes for payload in payloads)
    received = from_bytes(
        message, codec, [payload.spec for payload in payloads], [payload.nbytes for payload in payloads]
    )
    for sent, got in zip(payloads, received, strict=True):
        assert got.spec == sent.spec
        assert bits(got.tensors) == bits(sent.tensors)


@every_codec
def test_config_and_repr_round_trip(codec: Codec) -> None:
    config = json.loads(json.dumps(to_config(codec)))
    assert config["id"] == codec.card.id
    assert method_from_config(config, method, "codec") == codec
    assert eval(repr(codec), vars(codecs).copy()) == codec
    assert hash(codec) == hash(method_from_config(config, method, "codec"))


@every_codec
@settings(max_examples=40)
@given(numel=st.integers(0, 5_000))
def test_size_is_predicted_for_any_length(codec: Codec, numel: int) -> None:
    payload = encode(codec, normal(numel))
    assert_size_is_predicted(codec, payload)
    assert codec.decode(payload).shape == (numel,)


@pytest.mark.parametrize(
    "codec",
    [c for c in CODECS if c.card.scope in ("element", "block") and not (c.unbiased or c.card.unbiased)],
    ids=repr,
)
def test_chunks_at_multiples_of_the_granularity_decode_to_the_same(codec: Codec) -> None:
    """What two_shot relies on; stochastic codecs draw other numbers, sparse ones select per chunk."""
    flat = normal(10 * codec.granularity + 3)
    for units in (1, 3, 4, 7):
        cut = units * codec.granularity
        parts = [codec.decode(encode(codec, part)) for part in (flat[:cut], flat[cut:])]
        assert torch.equal(torch.cat(parts), codec.decode(encode(codec, flat))), units


@every_codec
def test_wrong_layout_is_a_payload_error(codec: Codec) -> None:
    payload = encode(codec, normal(100))
    spec = payload.spec
    wrong = [
        Payload(payload.tensors, GradSpec("weight", (2_000,), 2_000)),
        Payload((), spec),
        Payload((*payload.tensors, torch.zeros(1)), spec),
        Payload((*payload.tensors[:-1], payload.tensors[-1][:-1]), spec),
        Payload((*payload.tensors[:-1], payload.tensors[-1].to(torch.float64)), spec),
    ]
    for damaged in wrong:
        with pytest.raises(PayloadError):
            codec.decode(damaged)
    message = to_bytes([payload], CPU)
    for bad in (message[:-1], torch.cat([message, message[:1]]), message[:0], message.view(1, -1), message.float()):
        with pytest.raises(PayloadError):
            codec.decode(*from_bytes(bad, codec, [spec]))


@every_codec
@settings(max_examples=60)
@given(data=st.data(), numel=st.integers(1, 300))
def test_damaged_bytes_never_crash(codec: Codec, data: st.DataObject, numel: int) -> None:
    """Random bytes, or a payload with a few changed ones: a PayloadError, or some tensor of the right shape."""
    payload = encode(codec, normal(numel))
    message = to_bytes([payload], CPU)
    if data.draw(st.booleans(), label="all random"):
        raw = data.draw(st.binary(min_size=message.numel(), max_size=message.numel()))
        message = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    else:
        for position in data.draw(st.lists(st.integers(0, message.numel() - 1), max_size=4), label="changed"):
            message[position] = data.draw(st.integers(0, 255))
    (received,) = from_bytes(message, codec, [payload.spec])
    try:
        decoded = codec.decode(received)
    except PayloadError:
        return
    assert decoded.shape == (numel,)
    assert decoded.dtype == torch.float32
