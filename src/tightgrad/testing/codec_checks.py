"""What every codec must do with any tensor."""

import json
import sys
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tightgrad as tg
from tightgrad import codecs
from tightgrad.core.config import method_from_config, to_config
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload
from tightgrad.core.wire import as_bytes, from_bytes, most_nbytes, to_bytes
from tightgrad.plan.registry import method
from tightgrad.testing.checks import Checks, few_examples, more_examples
from tightgrad.testing.inputs import INPUTS, normal

CPU = torch.device("cpu")
CODEC_CHECKS = Checks()


def encode(codec: Codec, flat: Tensor, seed: int = 7) -> Payload:
    """Encode with a generator of this seed."""
    return codec.encode(flat, GradSpec.of("weight", flat), torch.Generator().manual_seed(seed))


def assert_size_is_predicted(codec: Codec, payload: Payload) -> None:
    """Raise an AssertionError unless the payload has the bytes that the codec announces."""
    predicted = codec.payload_nbytes(payload.spec)
    most = most_nbytes(codec, payload.spec)
    assert payload.nbytes <= most, f"a payload of {payload.nbytes} bytes is longer than the {most} that are allowed"
    assert predicted == payload.nbytes or (predicted is None and not codec.fixed_size), (
        f"layout() announces {predicted} bytes for {payload.spec.numel} elements, and encode() makes {payload.nbytes}"
    )


def bits(tensors: tuple[Tensor, ...]) -> list[tuple[torch.dtype, bytes]]:
    """Return what can be compared for equality of all bits."""
    return [(tensor.dtype, as_bytes(tensor).numpy().tobytes()) for tensor in tensors]


@CODEC_CHECKS.add(variants=INPUTS)
def check_shape_dtype_size_and_finiteness(codec: Codec, flat: Tensor) -> None:
    """Check that the payload is laid out as announced, and that float32 of the input's shape comes out, all finite."""
    spec = GradSpec.of("weight", flat)
    payload = encode(codec, flat)
    assert payload.spec == spec, "encode() must hand the spec on in the payload"
    assert_size_is_predicted(codec, payload)
    found = [(t.dtype, t.numel()) for t in payload.tensors]
    layout = codec.layout(spec)
    assert len(found) == len(layout), f"layout() has {len(layout)} tensors, and the payload {len(found)}"
    assert found == [(x.dtype, n if x.numel is None else x.numel) for x, (_, n) in zip(layout, found, strict=True)]
    decoded = codec.decode(payload)
    assert decoded.shape == flat.shape
    assert decoded.dtype == torch.float32
    # float16 rounds numbers above 65504 to inf, which the guard then sees; nothing else may.
    wire_dtypes = {layout.dtype for layout in codec.layout(spec)}
    overflows = [torch.finfo(d).max for d in wire_dtypes & {torch.float16, torch.bfloat16}]
    if not any(bool((flat.abs() > largest).any()) for largest in overflows):
        assert bool(torch.isfinite(decoded).all()), "a finite input was decoded to inf or NaN"


@CODEC_CHECKS.add(variants=INPUTS)
def check_input_is_left_alone_and_output_is_new(codec: Codec, flat: Tensor) -> None:
    """Check that input, payload and what is decoded share no memory."""
    given = flat.clone()
    before = bits((flat,))
    payload = encode(codec, given)
    assert bits((given,)) == before, "encode() wrote into its input"
    decoded = codec.decode(payload)
    sent = bits(payload.tensors)
    decoded.fill_(7.0)
    given.fill_(5.0)
    assert bits(payload.tensors) == sent, "the payload shares memory with the input or with what was decoded"


@CODEC_CHECKS.add()
def check_no_autograd_graph(codec: Codec) -> None:
    """Check that nothing that comes out requires gradients."""
    leaf = normal(100).requires_grad_()
    with torch.no_grad():
        payload = encode(codec, leaf)
        decoded = codec.decode(payload)
    for tensor in (*payload.tensors, decoded):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


@CODEC_CHECKS.add(variants=INPUTS)
def check_same_generator_same_bytes(codec: Codec, flat: Tensor) -> None:
    """Check that random numbers come from the generator alone."""
    first, second = encode(codec, flat), encode(codec, flat)
    assert bits(first.tensors) == bits(second.tensors), "the same generator gave two payloads"


@CODEC_CHECKS.add()
def check_the_global_generator_is_not_used(codec: Codec) -> None:
    """Check that the user's random numbers are as they would be without the codec."""
    before = torch.get_rng_state()
    encode(codec, normal(500))
    assert torch.equal(torch.get_rng_state(), before), "encode() drew from torch's global generator"


@CODEC_CHECKS.add(variants=INPUTS)
def check_zeros_stay_zeros(codec: Codec, flat: Tensor) -> None:
    """Check that no gradient is invented where there is none at all."""
    decoded = codec.decode(encode(codec, flat))
    assert bool((decoded[flat == 0] == 0).all()), "an element that was 0 is decoded to something else"


def takes_elements_apart(codec: Codec) -> bool:
    """Return whether each element is encoded without looking at others."""
    return codec.card.scope == "element"


@CODEC_CHECKS.add(applies=takes_elements_apart)
def check_a_zero_among_others_stays_zero(codec: Codec) -> None:
    """Check that a codec of scope "element" invents nothing at an element that is 0; transforms of blocks may."""
    for first in range(3):
        flat = normal(90)
        flat[first::3] = 0.0
        decoded = codec.decode(encode(codec, flat))
        assert bool((decoded[flat == 0] == 0).all()), "an element that was 0 among others is decoded to something else"


@CODEC_CHECKS.add(variants=INPUTS)
def check_decode_is_add_to_zeros(codec: Codec, flat: Tensor) -> None:
    """Check that `add_to_` of zeros is `decode`, to the bit."""
    payload = encode(codec, flat)
    total = torch.zeros_like(flat)
    codec.add_to_(total, payload)
    assert torch.equal(total, codec.decode(payload))


@CODEC_CHECKS.add()
def check_add_to_adds(codec: Codec) -> None:
    """Check that `add_to_` adds what `decode` gives, to the bit."""
    payload = encode(codec, INPUTS["odd"])
    total = normal(1_001, seed=9)
    expected = total + codec.decode(payload)
    codec.add_to_(total, payload)
    assert torch.equal(total, expected)


@CODEC_CHECKS.add()
def check_bytes_round_trip(codec: Codec) -> None:
    """Check that payloads go into one message and come out as they were."""
    payloads = [encode(codec, flat) for flat in INPUTS.values()]
    message = to_bytes(payloads, CPU)
    assert message.numel() == sum(payload.nbytes for payload in payloads)
    received = from_bytes(
        message, codec, [payload.spec for payload in payloads], [payload.nbytes for payload in payloads]
    )
    for sent, got in zip(payloads, received, strict=True):
        assert got.spec == sent.spec
        assert bits(got.tensors) == bits(sent.tensors)


@CODEC_CHECKS.add()
def check_config_and_repr_round_trip(codec: Codec) -> None:
    """Check that a plan finds the codec by its id, and that JSON, repr and hash have its settings."""
    found = method(codec.card.id)
    assert found is type(codec), f"the id {codec.card.id!r} leads to {found}, not to {type(codec)}"
    config = json.loads(json.dumps(to_config(codec)))
    assert config["id"] == codec.card.id
    assert method_from_config(config, method, "codec") == codec
    assert eval(repr(codec), {**vars(codecs), **vars(sys.modules[type(codec).__module__])}) == codec
    assert hash(codec) == hash(method_from_config(config, method, "codec"))


@CODEC_CHECKS.add()
def check_size_is_predicted_for_any_length(codec: Codec) -> None:
    """Check the size also for lengths that are no multiple of anything."""

    @few_examples
    @given(numel=st.integers(0, 5_000))
    def for_length(numel: int) -> None:
        payload = encode(codec, normal(numel))
        assert_size_is_predicted(codec, payload)
        assert codec.decode(payload).shape == (numel,)

    for_length()


def cuts(codec: Codec) -> bool:
    """Return whether tensors may be cut for it without changing what is decoded; random numbers would be others."""
    return codec.card.scope in ("element", "block") and not (codec.unbiased or codec.card.unbiased)


@CODEC_CHECKS.add(applies=cuts)
def check_chunks_at_multiples_of_the_granularity_decode_to_the_same(codec: Codec) -> None:
    """Check what two_shot relies on: chunks may be encoded one by one.

    Not for stochastic codecs, which draw other numbers, nor for sparse ones, which select in each chunk.
    """
    flat = normal(10 * codec.granularity + 3)
    for units in (1, 3, 4, 7):
        cut = units * codec.granularity
        parts = [codec.decode(encode(codec, part)) for part in (flat[:cut], flat[cut:])]
        assert torch.equal(torch.cat(parts), codec.decode(encode(codec, flat))), (
            f"cut after {cut} elements, another tensor is decoded; is granularity={codec.granularity} right, and the "
            f"scope {codec.card.scope!r}?"
        )


@CODEC_CHECKS.add()
def check_wrong_layout_is_a_payload_error(codec: Codec) -> None:
    """Check that tensors too many, too few, too short or of another dtype are refused."""
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


@CODEC_CHECKS.add()
def check_damaged_bytes_never_crash(codec: Codec) -> None:
    """Check that random or changed bytes give a PayloadError, or some tensor of the right shape."""

    @more_examples
    @given(data=st.data(), numel=st.integers(1, 300))
    def for_bytes(data: st.DataObject, numel: int) -> None:
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

    for_bytes()


@CODEC_CHECKS.add()
def check_tensors_of_two_dimensions_are_refused(codec: Codec) -> None:
    """Check that as many elements in another shape are refused: `Cast` once gave that shape back."""
    payload = encode(codec, normal(100), seed=0)
    for index, tensor in enumerate(payload.tensors):
        tensors = (*payload.tensors[:index], tensor[None], *payload.tensors[index + 1 :])
        with pytest.raises(PayloadError):
            codec.decode(Payload(tensors, payload.spec))
        with pytest.raises(PayloadError):
            codec.decode_to_(torch.empty(100), Payload(tensors, payload.spec))


@CODEC_CHECKS.add()
def check_nothing_is_allocated_for_a_payload_that_is_too_short(codec: Codec) -> None:
    """Check that a payload is looked at before a tensor is made, which would have 10^15 elements here."""
    payload = encode(codec, normal(100), seed=0)
    with pytest.raises(PayloadError):
        codec.decode(Payload(payload.tensors, GradSpec("weight", (10**15,), 10**15)))


def one_by_one(codec: Codec, flats: Sequence[Tensor], specs: Sequence[GradSpec]) -> tuple[Tensor, list[Tensor]]:
    """Return the bytes of the payloads, one after the other, and what each decodes to."""
    payloads = [codec.encode(flat, spec, torch.Generator()) for flat, spec in zip(flats, specs, strict=True)]
    return to_bytes(payloads, CPU), [codec.decode(payload) for payload in payloads]


def has_fixed_size(codec: Codec) -> bool:
    """Return whether several payloads can be one message without their lengths being told."""
    return codec.fixed_size


@CODEC_CHECKS.add(applies=has_fixed_size)
def check_what_is_done_together_is_the_same(codec: Codec) -> None:
    """Check that `encode_all`, `decode_all` and `add_all_to_` give what one by one gives, to the bit."""
    numels = [70, 300, 256, 9]
    flats = [normal(numel, seed) for seed, numel in enumerate(numels)]
    specs = [GradSpec(str(i), (n,) if i % 3 == 0 else (1, n), n) for i, n in enumerate(numels)]
    message = codec.encode_all(flats, specs, lambda name: torch.Generator())
    wanted, values = one_by_one(codec, flats, specs)
    assert torch.equal(message, wanted), "encode_all() gives other bytes than encode(), one after the other"
    decoded = codec.decode_all(message, specs)
    assert all(torch.equal(a, b) for a, b in zip(decoded, values, strict=True)), "decode_all() differs from decode()"
    for alpha in (1, -1):
        totals = [normal(numel, seed=9) for numel in numels]
        expected = [total.add(value, alpha=alpha) for total, value in zip(totals, values, strict=True)]
        codec.add_all_to_(totals, message, specs, alpha)
        assert all(torch.equal(a, b) for a, b in zip(totals, expected, strict=True)), (
            f"add_all_to_(alpha={alpha}) adds something else than decode() gives"
        )


@CODEC_CHECKS.add()
def check_the_default_reducer_takes_it(codec: Codec) -> None:
    """Check that the reducer on the card exists and runs with the codec."""
    compress = tg.Compress(codec)
    assert compress.reducer is not None
    assert compress.reducer.card.id == codec.reducer
