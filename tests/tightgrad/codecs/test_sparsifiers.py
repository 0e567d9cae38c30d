"""What each sparse codec does beyond the conformance suite."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tightgrad.codecs import (
    QSGD,
    ByStep,
    Cast,
    ChunkedTopK,
    DCTTopK,
    DensityWarmup,
    IntBlock,
    PerTensor,
    RandomK,
    SampledThreshold,
    SizeAdaptive,
    StochasticPrune,
    Threshold,
    TopK,
)
from tightgrad.codecs.dct_topk import dct_matrix
from tightgrad.core.errors import ConfigError, PayloadError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload

CPU = torch.device("cpu")


def normal(numel: int, seed: int = 0) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def encoded(
    codec: Codec, flat: Tensor, seed: int = 0, *, step: int = 0, shape: tuple[int, ...] | None = None
) -> Payload:
    spec = GradSpec("w", shape or tuple(flat.shape), flat.numel(), seed=seed, step=step)
    return codec.encode(flat, spec, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("numel", [10_000, 1_000_000])
def test_a_thousandth_in_four_bits_is_1500_times_smaller(numel: int) -> None:
    payload = encoded(TopK(0.001, values=IntBlock(4)), normal(numel))
    assert 4 * numel / payload.nbytes >= 1_500


def test_sparse_is_never_larger_than_dense() -> None:
    flat = normal(3)
    everything = TopK(1.0, values=Cast("float32"))
    payload = encoded(everything, flat)
    assert payload.nbytes == 12
    assert torch.equal(everything.decode(payload), flat)
    assert encoded(TopK(1.0, values=IntBlock(4)), flat[:1]).nbytes == 4
    for codec in (Threshold(1e-6, Cast("float32")), SampledThreshold(1.0, values=Cast("float32"))):
        payload = encoded(codec, flat)
        assert payload.nbytes <= 8 + 12
        assert torch.equal(codec.decode(payload), flat)


def test_chunked_topk_hears_every_block() -> None:
    flat = normal(100)
    flat[:20] *= 1_000
    kept = ChunkedTopK(block_size=20, count_per_block=3, values=Cast("float32"))
    decoded = kept.decode(encoded(kept, flat))
    assert (decoded.view(5, 20) != 0).sum(dim=1).tolist() == [3] * 5


def test_random_k_draws_the_same_on_every_rank_and_other_entries_each_step() -> None:
    codec = RandomK(0.1)
    first, again, other = (codec.indices(GradSpec("w", (1_000,), 1_000, seed=seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.numel() == first.unique().numel() == 100
    assert encoded(codec, normal(1_000)).nbytes == 400


def test_random_k_keeps_every_entry_equally_often() -> None:
    codec = RandomK(0.3)
    counts = torch.zeros(10)
    for seed in range(3_000):
        counts[codec.indices(GradSpec("w", (10,), 10, seed=seed))[0]] += 1
    assert bool(((counts / 3_000 - 0.3).abs() < 0.05).all())


def test_random_k_is_linear() -> None:
    codec = RandomK(0.2)
    flats = [normal(500, seed) for seed in range(3)]
    payloads = [encoded(codec, flat, 9) for flat in flats]
    summed = Payload((torch.stack([payload.tensors[0] for payload in payloads]).sum(0),), payloads[0].spec)
    assert torch.allclose(codec.decode(summed), sum(codec.decode(payload) for payload in payloads), atol=1e-6)
    assert not RandomK(0.2, values=Cast("bfloat16")).linear


def test_sampled_threshold_is_near_the_wanted_density() -> None:
    flat = normal(1_000_000)
    codec = SampledThreshold(0.01, num_samples=65_536)
    kept = int((codec.decode(encoded(codec, flat)) != 0).sum())
    assert 0.008 < kept / flat.numel() < 0.012


def test_stochastic_prune_keeps_the_wanted_number_on_average() -> None:
    flat = normal(20_000) ** 3
    codec = StochasticPrune(0.05)
    kept = [int((codec.decode(encoded(codec, flat, seed)) != 0).sum()) for seed in range(100, 105)]
    assert math.isclose(sum(kept) / len(kept), 1_000, rel_tol=0.1)


def test_dct_is_orthonormal_and_smooth_blocks_need_few_coefficients() -> None:
    matrix = dct_matrix(64, CPU)
    assert torch.allclose(matrix @ matrix.T, torch.eye(64), atol=1e-5)
    smooth = torch.sin(torch.linspace(0, 20, 4_096))
    codec = DCTTopK(block_size=64, count_per_block=4)
    error = (codec.decode(encoded(codec, smooth)) - smooth).norm() / smooth.norm()
    assert float(error) < 0.05


def test_dct_refuses_coefficients_in_the_wrong_block() -> None:
    codec = DCTTopK(block_size=32, count_per_block=2)
    good = encoded(codec, normal(128))
    crowded = ChunkedTopK(block_size=128, count_per_block=8)
    flat = torch.zeros(128)
    flat[:8] = 1.0
    bad = encoded(crowded, flat)
    assert bad.nbytes == good.nbytes
    with pytest.raises(PayloadError, match="each block"):
        codec.decode(Payload(bad.tensors, good.spec))


@pytest.mark.parametrize("codec", [Threshold(1.0), StochasticPrune(0.1), QSGD(1, coding="elias")], ids=repr)
def test_a_count_beyond_the_tensor_is_refused(codec: Codec) -> None:
    spec = GradSpec("w", (10,), 10)
    for count in (11, -2, 2**62):
        message = torch.cat([torch.tensor([count]).view(torch.uint8), torch.zeros(16, dtype=torch.uint8)])
        with pytest.raises(PayloadError, match="damaged"):
            codec.decode(Payload((message,), spec))


def test_size_adaptive_looks_at_the_whole_gradient() -> None:
    codec = SizeAdaptive(TopK(0.01), threshold=100)
    sizes = {(99,): Cast, (1_000,): Cast, (9, 11): Cast, (10, 10): TopK}
    for shape, kind in sizes.items():
        assert isinstance(codec.choose(GradSpec("w", shape, math.prod(shape))), kind)
    assert isinstance(codec.choose(GradSpec("w", (10, 10), 3)), TopK)
    assert codec.reducer == "gather"
    assert SizeAdaptive(IntBlock(8)).reducer == "two_shot"
    assert SizeAdaptive(RandomK(0.1)).reducer == "linear"


def test_per_tensor_takes_the_first_rule() -> None:
    codec = PerTensor((("a*", IntBlock(8)), ("*b", IntBlock(4))), default=Cast())
    names = {"ab": IntBlock(8), "xb": IntBlock(4), "x": Cast()}
    assert {name: codec.choose(GradSpec(name, (1,), 1)) for name in names} == names


def test_by_step_changes_at_its_steps() -> None:
    codec = ByStep(((0, IntBlock(8)), (10, IntBlock(4))))
    assert [codec.choose(GradSpec("w", (1,), 1, step=step)).bits for step in (0, 9, 10, 99)] == [8, 8, 4, 4]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="ascend from 0"):
        ByStep(((5, IntBlock(8)),))


def test_density_falls_exponentially_to_the_codecs_own() -> None:
    codec = DensityWarmup(TopK(0.0001), start=0.25, steps=4)
    densities = [codec.choose(GradSpec("w", (1,), 1, step=step)).density for step in range(6)]  # type: ignore[attr-defined]
    ratios = [after / before for before, after in itertools.pairwise(densities)]
    assert densities[0] == 0.25
    assert densities[4] == densities[5] == 0.0001
    assert all(math.isclose(ratio, (0.0001 / 0.25) ** 0.25) for ratio in ratios[:4])
    flat = normal(10_000)
    assert encoded(codec, flat, step=0).nbytes > 100 * encoded(codec, flat, step=4).nbytes
    with pytest.raises(ConfigError, match="no density"):
        DensityWarmup(IntBlock(8))
