"""What each quantiser does beyond the conformance suite."""

import math

import pytest
import torch
from torch import Tensor

import tightgrad.codecs.bits.pieces as pieces
from tightgrad.codecs import FP8, QSGD, Cast, Hadamard, IntBlock, Natural, Sign, TernGrad
from tightgrad.codecs.bits.packing import pack_base3, unpack_base3
from tightgrad.codecs.hadamard import rotate
from tightgrad.core.errors import ConfigError, PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload


def normal(numel: int, seed: int = 0) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def encoded(codec: Codec, flat: Tensor, seed: int = 0) -> Payload:
    return codec.encode(flat, GradSpec.of("w", flat), torch.Generator().manual_seed(seed))


def round_trip(codec: Codec, flat: Tensor, seed: int = 0) -> Tensor:
    return codec.decode(encoded(codec, flat, seed))


@pytest.mark.parametrize("codec", [FP8(), IntBlock(8), IntBlock(4), IntBlock(2), Sign(block_size=100)], ids=repr)
def test_pieces_change_nothing(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is one piece for the whole tensor."""
    flat = normal(10_007)
    monkeypatch.setattr(pieces, "PIECE_NUMEL", 10**9)
    whole = encoded(codec, flat)
    monkeypatch.setattr(pieces, "PIECE_NUMEL", 2_000)
    cut = encoded(codec, flat)
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors, cut.tensors, strict=True))
    assert torch.equal(codec.decode(cut), codec.decode(whole))
    total = normal(10_007, 1)
    expected = total + codec.decode(cut)
    codec.add_to_(total, cut)
    assert torch.equal(total, expected)


@pytest.mark.parametrize("form", ["e4m3", "e5m2"])
def test_fp8_decodes_all_bytes_as_torch_does(form: str) -> None:
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[form]
    codes = torch.arange(256, dtype=torch.uint8)
    decoded = FP8(form).decode(Payload((codes, torch.ones(1)), GradSpec("w", (256,), 256)))
    assert torch.equal(decoded.nan_to_num(nan=7.0), codes.view(dtype).float().nan_to_num(nan=7.0))


def test_qsgd_levels_are_multiples_of_the_norm() -> None:
    flat = normal(64)
    decoded = round_trip(QSGD(levels=4, block_size=64), flat)
    levels = decoded / (flat.norm() / 4)
    assert torch.allclose(levels, levels.round(), atol=1e-5)
    assert bool((levels.abs() <= 4.001).all())


def test_qsgd_codings_decode_to_the_same() -> None:
    flat = normal(3_001)
    packed = round_trip(QSGD(levels=3, block_size=128), flat, 5)
    elias = round_trip(QSGD(levels=3, block_size=128, coding="elias"), flat, 5)
    assert torch.equal(packed, elias)


def test_elias_is_smaller_where_few_levels_are_left() -> None:
    flat = normal(100_000)
    assert encoded(QSGD(1, coding="elias"), flat).nbytes < 0.25 * encoded(QSGD(1), flat).nbytes


def test_elias_falls_back_to_dense() -> None:
    """Levels beyond what float32 takes: one block an 8 elements, and 127 levels that are all used."""
    flat = torch.tensor([1.0, -1.0] * 4)
    payload = encoded(QSGD(127, block_size=8, norm="max", coding="elias"), flat)
    assert payload.nbytes <= 8 + 32
    assert torch.equal(QSGD(127, block_size=8, norm="max", coding="elias").decode(payload), flat)


def test_terngrad_has_three_values_in_a_fifth_of_a_byte() -> None:
    flat = normal(1_000)
    codec = TernGrad(block_size=1_000)
    payload = encoded(codec, flat)
    assert payload.nbytes == 200 + 4
    assert set(codec.decode(payload).unique().tolist()) <= {float(-flat.abs().max()), 0.0, float(flat.abs().max())}


def test_terngrad_clips_at_deviations() -> None:
    flat = normal(1_000)
    flat[3] = 100.0
    scale = round_trip(TernGrad(block_size=1_000, clip_deviations=2.5), flat).abs().max()
    assert torch.allclose(scale, 2.5 * flat.std(correction=0))


def test_base3_refuses_bytes_that_are_not_digits() -> None:
    digits = torch.tensor([0, 1, 2, 2, 1, 0, 2])
    assert torch.equal(unpack_base3(pack_base3(digits), 7), digits.to(torch.uint8))
    with pytest.raises(PayloadError, match="243"):
        unpack_base3(torch.tensor([243], dtype=torch.uint8), 5)


def test_natural_gives_a_neighbouring_power_of_two() -> None:
    flat = torch.cat([normal(1_000), torch.tensor([1.0, -0.25, 2.0**-100])])
    decoded = round_trip(Natural(), flat)
    exponent = torch.log2(decoded.abs())
    assert torch.equal(exponent, exponent.round())
    ratio = decoded / flat
    assert bool(((ratio > 0.5) & (ratio < 2)).all())
    assert torch.equal(decoded[-3:], flat[-3:])


def test_natural_draws_what_underflows_its_range_without_bias() -> None:
    flat = torch.tensor([2.0**60, 2.0**-68])  # 2^-128 apart, the range ends at 2^-126
    draws = torch.stack([round_trip(Natural(), flat, seed)[1] for seed in range(4_000)])
    assert set(draws.tolist()) == {0.0, 2.0**-66}
    assert math.isclose(float(draws.mean()), 2.0**-68, rel_tol=0.15)


def test_sign_of_zero_is_plus_and_a_block_of_zeros_stays_zero() -> None:
    flat = torch.tensor([0.0, -3.0] * 4 + [0.0] * 8)
    assert round_trip(Sign(block_size=8), flat).tolist() == [1.5, -1.5] * 4 + [0.0] * 8


def test_rotation_is_orthonormal_and_its_own_inverse() -> None:
    matrix = rotate(torch.eye(16))
    assert torch.allclose(matrix @ matrix.T, torch.eye(16), atol=1e-6)
    blocks = normal(64).view(4, 16)
    assert torch.allclose(rotate(rotate(blocks.clone())), blocks, atol=1e-6)


def test_rotation_helps_where_one_entry_is_large() -> None:
    flat = normal(4_096)
    flat[::256] = 200.0
    rotated, plain = (round_trip(codec, flat) for codec in (Hadamard(IntBlock(4)), IntBlock(4)))
    small = flat.abs() < 100
    assert float((rotated - flat)[small].norm()) < float((plain - flat)[small].norm())


def test_rotation_changes_with_the_shared_seed_alone() -> None:
    flat = normal(256)
    generator = torch.Generator().manual_seed(0)
    first, second = (
        Hadamard().encode(flat, GradSpec.of("w", flat, seed=seed), generator).tensors[0] for seed in (1, 2)
    )
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FP8("e3m4"), "e4m3"),
        (lambda: IntBlock(3), "8, 4, 2"),
        (lambda: QSGD(levels=128), "127"),
        (lambda: QSGD(coding="huffman"), "elias"),
        (lambda: TernGrad(clip_deviations=0.0), "above 0"),
        (lambda: Hadamard(block_size=100), "power of two"),
        (lambda: Hadamard(QSGD(coding="elias")), "fixed size"),
        (lambda: Cast("int8"), "float32"),
    ],
)
def test_settings_out_of_bounds(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
