"""What every codec must do with any tensor."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
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
from tightgrad.testing.checks import Checks, for_all
from tightgrad.testing.inputs import INPUTS, normal

CPU = torch.device("cpu")
CODEC_CHECKS = Checks()


def encode(codec: Codec, flat: Tensor, seed: int = 7) -> Payload:
    """Encode with a generator of this seed."""
    return codec.encode(flat, GradSpec.of("weight", flat), torch.Generator().manual_seed(seed))


def round_trip(codec: Codec, flat: Tensor) -> Tensor:
    """Encode a tensor and decode the payload."""
    return codec.decode(encode(codec, flat))


def assert_size_is_predicted(codec: Codec, payload: Payload) -> None:
    """Raise an AssertionError unless the payload has the bytes that the codec announces."""
    predicted = codec.payload_nbytes(payload.spec)
    most = most_nbytes(codec, payload.spec)
    assert payload.nbytes <= most, f"a payload of {payload.nbytes} bytes is longer than the {most} that are allowed"
    assert predicted == payload.nbytes or (predicted is None and not codec.fixed_size), (
        f"layout() announces {predicted} bytes for {payload.spec.numel} elements, and encode() makes {payload.nbytes}"
    )


def assert_decoded(flat: Tensor, numel: int) -> None:
    """Raise an AssertionError unless a tensor is what `decode` must return for so many float32 elements."""
    assert (flat.dtype, flat.shape) == (torch.float32, (numel,)), (
        f"decode() gives {flat.dtype} of shape {tuple(flat.shape)}, expected {torch.float32} of shape ({numel},), as "
        "the payload's spec says"
    )


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Raise an AssertionError unless the block raises `PayloadError`."""
    try:
        yield
    except PayloadError:
        return
    raise AssertionError(f"a payload {what} was decoded; begin decode() with checked_tensors() of tightgrad.core.wire")


def bits(tensors: tuple[Tensor, ...]) -> list[tuple[torch.dtype, bytes]]:
    """Return what can be compared for equality of all bits."""
    return [(tensor.dtype, as_bytes(tensor).numpy().tobytes()) for tensor in tensors]


@CODEC_CHECKS.add(variants=INPUTS)
def check_shape_dtype_size_and_finiteness(codec: Codec, flat: Tensor) -> None:
    """Check that the payload is laid out as announced, and that float32 of the input's shape comes out, all finite."""
    spec = GradSpec.of("weight", flat)
    payload = encode(codec, flat)
    assert isinstance(payload, Payload), f"encode() gives a {type(payload).__name__}; return Payload((...,), spec)"
    assert payload.spec == spec, "encode() must hand the spec on in the payload"
    assert_size_is_predicted(codec, payload)
    found = [(tensor.dtype, tuple(tensor.shape)) for tensor in payload.tensors]
    wanted = [(part.dtype, part.numel) for part in codec.layout(spec)]
    assert len(found) == len(wanted), f"layout() has {len(wanted)} tensors, and the payload {len(found)}"
    for (dtype, shape), (announced, numel) in zip(found, wanted, strict=True):
        assert dtype == announced, f"layout() announces {announced}, and encode() makes {dtype}"
        assert len(shape) == 1, f"a tensor of a payload has the shape {shape}; give it one dimension"
        assert numel in (None, *shape), f"layout() announces {numel} elements, and encode() makes {shape[0]}"
    decoded = codec.decode(payload)
    assert_decoded(decoded, spec.numel)
    # float16 rounds numbers above 65504 to inf, which the guard then sees; nothing else may.
    overflows = [torch.finfo(dtype).max for dtype, _ in wanted if dtype in (torch.float16, torch.bfloat16)]
    if not any(bool((flat.abs() > largest).any()) for largest in overflows):
        assert bool(torch.isfinite(decoded).all()), "a finite input was decoded to inf or NaN"


@CODEC_CHECKS.add(variants=INPUTS)
def check_input_is_left_alone_and_output_is_new(codec: Codec, flat: Tensor) -> None:
    """Check that input, payload and what is decoded share no memory."""
    given = flat.clone()
    payload = encode(codec, given)
    assert bits((given,)) == bits((flat,)), "encode() wrote into its input"
    decoded = codec.decode(payload)
    sent = bits(payload.tensors)
    decoded.fill_(7.0)
    given.fill_(5.0)
    assert bits(payload.tensors) == sent, "the payload shares memory with the input or with what was decoded"


@CODEC_CHECKS.add()
def check_no_autograd_graph(codec: Codec) -> None:
    """Check that nothing that comes out requires gradients."""
    with torch.no_grad():
        payload = encode(codec, normal(100).requires_grad_())
        decoded = codec.decode(payload)
    for tensor in (*payload.tensors, decoded):
        assert not tensor.requires_grad, "encode() or decode() gives tensors that require gradients"


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
    decoded = round_trip(codec, flat)
    assert bool((decoded[flat == 0] == 0).all()), "an element that was 0 is decoded to something else"


@CODEC_CHECKS.add(applies=lambda codec: codec.card.scope == "element")
def check_a_zero_among_others_stays_zero(codec: Codec) -> None:
    """Check that a codec of scope "element" invents nothing at an element that is 0; transforms of blocks may."""
    for first in range(3):
        flat = normal(90)
        flat[first::3] = 0.0
        decoded = round_trip(codec, flat)
        assert bool((decoded[flat == 0] == 0).all()), "an element that was 0 among others is decoded to something else"


@CODEC_CHECKS.add(variants=INPUTS)
def check_decode_is_add_to_zeros(codec: Codec, flat: Tensor) -> None:
    """Check that `add_to_` of zeros is `decode`, to the bit."""
    payload = encode(codec, flat)
    total = torch.zeros_like(flat)
    codec.add_to_(total, payload)
    assert torch.equal(total, codec.decode(payload)), "add_to_() of zeros gives something else than decode()"


@CODEC_CHECKS.add()
def check_add_to_adds(codec: Codec) -> None:
    """Check that `add_to_` adds what `decode` gives, to the bit."""
    payload = encode(codec, INPUTS["odd"])
    total = normal(1_001, seed=9)
    expected = total + codec.decode(payload)
    codec.add_to_(total, payload)
    assert torch.equal(total, expected), "add_to_() adds something else than decode() gives"


@CODEC_CHECKS.add()
def check_bytes_round_trip(codec: Codec) -> None:
    """Check that payloads go into one message and come out as they were."""
    payloads = [encode(codec, flat) for flat in INPUTS.values()]
    message = to_bytes(payloads, CPU)
    expected = sum(payload.nbytes for payload in payloads)
    assert message.numel() == expected, f"the payloads are {message.numel()} bytes on the wire, expected {expected}"
    received = from_bytes(
        message, codec, [payload.spec for payload in payloads], [payload.nbytes for payload in payloads]
    )
    for sent, got in zip(payloads, received, strict=True):
        assert got.spec == sent.spec, f"the spec is {got.spec} after the wire, expected {sent.spec}"
        assert bits(got.tensors) == bits(sent.tensors), "a payload is another one after it was bytes"


@CODEC_CHECKS.add()
def check_config_and_repr_round_trip(codec: Codec) -> None:
    """Check that a plan finds the codec by its id, and that JSON, repr and hash have its settings."""
    found = method(codec.card.id)
    assert found is type(codec), (
        f"the id {codec.card.id!r} leads to {found.__module__}.{found.__qualname__}, which a plan read from JSON would "
        f"have in place of {type(codec).__module__}.{type(codec).__qualname__}; give the card another id"
    )
    config = json.loads(json.dumps(to_config(codec)))
    read = method_from_config(config, method, "codec")
    assert read == codec, f"as JSON and back, {codec!r} becomes {read!r} (a sequence must be a tuple)"
    again = eval(repr(codec), {**vars(codecs), **vars(sys.modules[type(codec).__module__])})
    assert again == codec, f"its repr makes {again!r}, expected {codec!r}; let the dataclass write __repr__"
    assert hash(codec) == hash(read), f"two equal objects {codec!r} have other hashes; let the dataclass write __hash__"


@CODEC_CHECKS.add()
def check_size_is_predicted_for_any_length(codec: Codec) -> None:
    """Check the size also for lengths that are no multiple of anything."""

    def for_length(numel: int) -> None:
        payload = encode(codec, normal(numel))
        assert_size_is_predicted(codec, payload)
        assert_decoded(codec.decode(payload), numel)

    for_all(for_length, max_examples=40, numel=st.integers(0, 5_000))


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
        parts = [round_trip(codec, part) for part in (flat[:cut], flat[cut:])]
        assert torch.equal(torch.cat(parts), round_trip(codec, flat)), (
            f"cut after {cut} elements, another tensor is decoded; is granularity={codec.granularity} right, and the "
            f"scope {codec.card.scope!r}?"
        )


@CODEC_CHECKS.add()
def check_wrong_layout_is_a_payload_error(codec: Codec) -> None:
    """Check that tensors too many, too few, too short, of another dtype or of two dimensions are refused."""
    payload = encode(codec, normal(100))
    spec, tensors = payload.spec, payload.tensors
    *first, last = tensors
    wrong = {
        "for more elements": Payload(tensors, GradSpec("weight", (2_000,), 2_000)),
        # Looked at before a tensor of as many elements is made.
        "for 10^15 elements": Payload(tensors, GradSpec("weight", (10**15,), 10**15)),
        "without tensors": Payload((), spec),
        "with a tensor too many": Payload((*tensors, torch.zeros(1)), spec),
        "with a tensor too short": Payload((*first, last[:-1]), spec),
        "of another dtype": Payload((*first, last.to(torch.float64)), spec),
    }
    for index, tensor in enumerate(tensors):
        wrong[f"whose tensor {index} has two dimensions"] = Payload(
            (*tensors[:index], tensor[None], *tensors[index + 1 :]), spec
        )
    for what, damaged in wrong.items():
        with refused(what):
            codec.decode(damaged)
        if damaged.spec == spec:
            with refused(what):
                codec.decode_to_(torch.empty(100), damaged)
    message = to_bytes([payload], CPU)
    for bad in (message[:-1], torch.cat([message, message[:1]]), message[:0], message.view(1, -1), message.float()):
        with refused(f"from {tuple(bad.shape)} elements of {bad.dtype} instead of {message.numel()} bytes"):
            codec.decode(*from_bytes(bad, codec, [spec]))


@CODEC_CHECKS.add()
def check_damaged_bytes_never_crash(codec: Codec) -> None:
    """Check that random or changed bytes give a PayloadError, or some tensor of the right shape."""

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
        assert_decoded(decoded, numel)

    for_all(for_bytes, data=st.data(), numel=st.integers(1, 300))


def one_by_one(codec: Codec, flats: Sequence[Tensor], specs: Sequence[GradSpec]) -> tuple[Tensor, list[Tensor]]:
    """Return the bytes of the payloads, one after the other, and what each decodes to."""
    payloads = [codec.encode(flat, spec, torch.Generator()) for flat, spec in zip(flats, specs, strict=True)]
    return to_bytes(payloads, CPU), [codec.decode(payload) for payload in payloads]


@CODEC_CHECKS.add(applies=lambda codec: codec.fixed_size)
def check_what_is_done_together_is_the_same(codec: Codec) -> None:
    """Check that `encode_all`, `decode_all` and `add_all_to_` give what one by one gives, to the bit."""
    numels = [70, 300, 256, 9]
    flats = [normal(numel, seed) for seed, numel in enumerate(numels)]
    specs = [GradSpec(str(i), (n,) if i % 3 == 0 else (1, n), n) for i, n in enumerate(numels)]
    message = codec.encode_all(flats, specs, lambda name: torch.Generator())
    wanted, values = one_by_one(codec, flats, specs)
    assert torch.equal(message, wanted), "encode_all() gives other bytes than encode(), one after the other"
    decoded = codec.decode_all(message, specs)
    assert all(map(torch.equal, decoded, values)), "decode_all() gives something else than decode()"
    for alpha in (1, -1):
        totals = [normal(numel, seed=9) for numel in numels]
        expected = [total.add(value, alpha=alpha) for total, value in zip(totals, values, strict=True)]
        codec.add_all_to_(totals, message, specs, alpha)
        assert all(map(torch.equal, totals, expected)), (
            f"add_all_to_(alpha={alpha}) adds something else than decode() gives"
        )


@CODEC_CHECKS.add()
def check_the_default_reducer_takes_it(codec: Codec) -> None:
    """Check that the reducer on the card exists and runs with the codec."""
    compress = tg.Compress(codec)
    found = compress.reducer.card.id if compress.reducer else None
    assert found == codec.reducer, f"Compress takes the reducer {found!r}, and the card says {codec.reducer!r}"
