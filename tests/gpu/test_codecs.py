"""Every codec on the device: what the CPU encoded decodes to the same bits there, and the other way round."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conformance.cases import CODECS
from support.device import DEVICE, generator, skip_without_device, without_waiting
from tightgrad.codecs import FP8, QSGD, Cast, IntBlock, Natural, Sign, TernGrad, int_block, natural, qsgd, terngrad
from tightgrad.codecs.bits.pieces import uniform
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload
from tightgrad.core.wire import from_bytes, most_nbytes, to_bytes
from tightgrad.testing.inputs import INPUTS, normal
from tightgrad_lab.bench.codecs import CODECS as MEASURED

skip_without_device()
every_codec = pytest.mark.parametrize("codec", CODECS, ids=repr)
every_input = pytest.mark.parametrize("name", INPUTS)

CPU = torch.device("cpu")
UNTIED = ("seven", "odd", "one block", "one huge", "tiny")
# Their scales are quotients or sums, whose last bit may depend on the device; or they draw.
ROUNDS_A_SCALE = ("IntBlock", "FP8", "QSGD", "Sign", "Hadamard", "DCTTopK")
DRAWS = ("stochastic", "QSGD", "TernGrad", "Natural", "StochasticPrune")
NO_WAITING = (
    *(Cast(dtype) for dtype in ("bfloat16", "float16", "float32")),
    FP8("e4m3", block_size=64),
    FP8("e5m2"),
    *(IntBlock(bits, 64, rounding) for bits in (8, 4, 2) for rounding in ("nearest", "stochastic")),
    Sign(),
    QSGD(7),
    QSGD(2, norm="max"),
)


def mentions(codec: Codec, words: tuple[str, ...]) -> bool:
    return any(word in repr(codec) for word in words)


def encode(codec: Codec, flat: Tensor, seed: int = 7, spec_seed: int = 0) -> Payload:
    drawing = torch.Generator(flat.device).manual_seed(seed)
    return codec.encode(flat, GradSpec.of("weight", flat, seed=spec_seed), drawing)


def moved(payload: Payload, device: torch.device) -> Payload:
    return Payload(tuple(t.to(device) for t in payload.tensors), replace(payload.spec, device=device))


def bits(tensors: tuple[Tensor, ...]) -> list[tuple[torch.dtype, bytes]]:
    return [(t.dtype, t.cpu().contiguous().view(torch.uint8).numpy().tobytes()) for t in tensors]


def error(decoded: Tensor, flat: Tensor) -> float:
    return float(torch.linalg.vector_norm(decoded.cpu().double() - flat.cpu().double()))


def assert_decoded_alike(codec: Codec, there: Tensor, here: Tensor) -> None:
    """Bits, but for `QSGD`, which divides scales by the number of levels: CUDA multiplies by its reciprocal. Numbers
    below float32's smallest normal one are 0 where CUDA adds to a place (`index_add_`).
    """
    assert there.dtype == here.dtype
    assert there.shape == here.shape
    if mentions(codec, ("QSGD",)):
        torch.testing.assert_close(there.cpu(), here.cpu(), rtol=2.0**-22, atol=0.0, equal_nan=True)
    else:
        apart = _without_denormals(there) != _without_denormals(here)
        apart &= ~(there.cpu().isnan() & here.cpu().isnan())
        assert not bool(apart.any()), (
            int(apart.sum()),
            there.cpu()[apart][:5].tolist(),
            here.cpu()[apart][:5].tolist(),
        )


def _without_denormals(values: Tensor) -> Tensor:
    values = values.cpu()
    return torch.where(values.abs() < torch.finfo(torch.float32).tiny, 0.0, values)


@every_codec
@every_input
def test_what_the_cpu_encoded_is_decoded_to_the_same(codec: Codec, name: str) -> None:
    payload = encode(codec, INPUTS[name])
    there = moved(payload, DEVICE)
    decoded = codec.decode(there)
    assert decoded.device.type == DEVICE.type
    assert_decoded_alike(codec, decoded, codec.decode(payload))
    total = torch.zeros_like(decoded)
    codec.add_to_(total, there)
    assert torch.equal(total, decoded)
    out = torch.full_like(decoded, 3.0)
    codec.decode_to_(out, there)
    assert torch.equal(out, decoded)


@every_codec
@every_input
def test_what_the_device_encoded_is_as_good_and_decodes_on_the_cpu(codec: Codec, name: str) -> None:
    flat = INPUTS[name]
    payload = encode(codec, flat.to(DEVICE))
    assert all(t.device.type == DEVICE.type for t in payload.tensors)
    predicted = codec.payload_nbytes(payload.spec)
    assert payload.nbytes <= most_nbytes(codec, payload.spec)
    assert predicted == payload.nbytes or (predicted is None and not codec.fixed_size)
    decoded, here = codec.decode(payload), codec.decode(moved(payload, CPU))
    assert_decoded_alike(codec, decoded, here)
    assert bool((decoded.cpu()[flat == 0] == 0).all())
    if not mentions(codec, DRAWS):
        reference = error(codec.decode(encode(codec, flat)), flat)
        size = float(torch.linalg.vector_norm(flat.double()))
        found = error(decoded, flat)
        flushed = flat.numel() ** 0.5 * torch.finfo(torch.float32).tiny
        limit = reference * 1.01 + 1e-6 * size + flushed
        assert found <= limit or found == reference  # which may be inf, or NaN of inf - inf


@pytest.mark.parametrize("codec", [codec for codec in CODECS if not mentions(codec, ROUNDS_A_SCALE + DRAWS)], ids=repr)
@pytest.mark.parametrize("name", UNTIED)
def test_without_a_rounded_scale_the_device_encodes_to_the_same_bytes(codec: Codec, name: str) -> None:
    flat = INPUTS[name]
    assert bits(encode(codec, flat.to(DEVICE)).tensors) == bits(encode(codec, flat).tensors)


@pytest.mark.parametrize(
    "codec", [Natural(block_size=64), TernGrad(block_size=64), QSGD(levels=2, block_size=32, norm="max")], ids=repr
)
@pytest.mark.parametrize("name", [*UNTIED, "ties", "zeros"])
def test_the_same_draws_give_the_same_bytes(codec: Codec, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs between devices is the stream of random numbers alone."""

    def drawn_here(numel: int, drawing: torch.Generator, device: torch.device) -> Tensor:
        return uniform(numel, torch.Generator().manual_seed(11), CPU).to(device)

    for module in (int_block, natural, qsgd, terngrad):
        monkeypatch.setattr(module, "uniform", drawn_here)
    flat = INPUTS[name]
    assert bits(encode(codec, flat.to(DEVICE)).tensors) == bits(encode(codec, flat).tensors)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec.unbiased], ids=repr)
def test_draws_of_the_device_are_unbiased(codec: Codec) -> None:
    """The mean of many draws is nearer than one of them by the root of their number."""
    count, flat = 256, normal(1_001).to(DEVICE)
    draws = torch.stack([codec.decode(encode(codec, flat, seed, spec_seed=seed)) for seed in range(count)])
    size = float(flat.norm())
    one = float((draws - flat).norm()) / count**0.5 / size
    assert float((draws.mean(dim=0) - flat).norm()) / size < 1.5 * one / count**0.5 + 1e-6


@every_codec
def test_the_device_draws_from_the_generator_it_is_given(codec: Codec) -> None:
    flat = normal(1_001).to(DEVICE)
    before = torch.get_rng_state(), torch.cuda.get_rng_state() if DEVICE.type == "cuda" else None
    first, second = encode(codec, flat), encode(codec, flat)
    assert bits(first.tensors) == bits(second.tensors)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert before[1] is None or torch.equal(torch.cuda.get_rng_state(), before[1])


@pytest.mark.parametrize("codec", NO_WAITING, ids=repr)
def test_quantised_payloads_make_nobody_wait(codec: Codec) -> None:
    flat = normal(10_007).to(DEVICE)
    spec, drawing = GradSpec.of("weight", flat), generator()
    out, total = torch.empty_like(flat), torch.zeros_like(flat)
    with without_waiting():
        payload = codec.encode(flat, spec, drawing)
        decoded = codec.decode(payload)
        codec.decode_to_(out, payload)
        codec.add_to_(total, payload)
    assert torch.equal(out, decoded)
    assert torch.equal(total, decoded)


@every_codec
def test_bytes_round_trip(codec: Codec) -> None:
    payloads = [encode(codec, flat.to(DEVICE)) for flat in INPUTS.values()]
    message = to_bytes(payloads, DEVICE)
    assert message.device.type == DEVICE.type
    specs, sizes = [payload.spec for payload in payloads], [payload.nbytes for payload in payloads]
    for sent, got in zip(payloads, from_bytes(message, codec, specs, sizes), strict=True):
        assert bits(got.tensors) == bits(sent.tensors)


@pytest.mark.parametrize("codec", MEASURED, ids=repr)
def test_a_long_tensor_in_one_piece(codec: Codec) -> None:
    """The CPU works in pieces, the device in one; whole blocks and a shorter last one."""
    flat = normal(3_000_017)
    payload = encode(codec, flat.to(DEVICE))
    here = codec.decode(moved(payload, CPU))
    assert_decoded_alike(codec, codec.decode(payload), here)
    reference = codec.decode(encode(codec, flat))
    assert error(here, flat) == pytest.approx(error(reference, flat), rel=0.01)
