"""Gradients that float32 cannot hold, and complex ones: the same answer as in exact arithmetic, from every method."""

import math

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.clip.dtensor import zero_nonfinite_
from tightgrad.clip.norm import exact_norm
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import MODEL, State

SIZES = {"weight": (4, 3), "bias": (4,)}
CLIPPERS: dict[str, Clipper] = {
    "global_norm": tg.clip.GlobalNorm(1.0),
    "global_norm inf": tg.clip.GlobalNorm(1.0, norm_type=math.inf),
    "global_norm 3": tg.clip.GlobalNorm(1.0, norm_type=3.0, compat="torch"),
    "value": tg.clip.Value(1.0),
    "per_tensor_norm": tg.clip.PerTensorNorm(1.0),
    "block_rms": tg.clip.BlockRMS(1.0),
    "agc": tg.clip.AGC(1.0),
    "adagc": tg.clip.AdaGC(warmup_steps=1),
    "chain": tg.clip.Chain((tg.clip.Value(1.0), tg.clip.GlobalNorm(0.5))),
    "by_name": tg.clip.ByName((("bias", tg.clip.Value(1.0)),), default=tg.clip.GlobalNorm(1.0)),
}


def parameter(grad: Tensor) -> nn.Parameter:
    made = nn.Parameter(torch.zeros_like(grad))
    made.grad = grad
    return made


def drawn(dtype: torch.dtype, scale: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return {name: (torch.randn(s, generator=generator, dtype=wide) * scale).to(dtype) for name, s in SIZES.items()}


@pytest.mark.parametrize("name", CLIPPERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_every_clipper_at_any_size(name: str, dtype: torch.dtype) -> None:
    """Where a bound is reached, the clipped gradient does not depend on the size of what was clipped."""
    results = []
    for scale in (1e4, 1e200, 1e290):
        grads = drawn(dtype, scale)
        params = {n: nn.Parameter(torch.ones_like(grad)) for n, grad in grads.items()}
        clipped = CLIPPERS[name].clip_(grads, params, exact_norm, {})
        assert 0 < float(clipped.clip_coef) < 1 / (scale / 1e2)
        assert math.isfinite(clipped.total_norm)
        results.append(grads)
    for grads in results[1:]:
        for n, grad in grads.items():
            torch.testing.assert_close(grad, results[0][n], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", CLIPPERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_tiny_gradients_are_left_alone(name: str, dtype: torch.dtype) -> None:
    grads, before = drawn(dtype, 1e-200), drawn(dtype, 1e-200)
    params = {n: nn.Parameter(torch.ones_like(grad)) for n, grad in grads.items()}
    clipped = CLIPPERS[name].clip_(grads, params, exact_norm, {})
    assert float(clipped.total_norm) > 0
    assert float(clipped.clip_coef) == pytest.approx(1.0, rel=1e-5)
    assert all(torch.allclose(grads[n], before[n], rtol=1e-5, atol=0) for n in grads)


@pytest.mark.parametrize("max_norm", [1e-210, 1.0, 1e210])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.5, 8.0, math.inf])
def test_float32_and_float64_together(p: float, max_norm: float) -> None:
    wide, narrow = torch.full((5,), 1e200, dtype=torch.float64), torch.full((3,), 2.0)
    parameters = [parameter(wide.clone()), parameter(narrow.clone())]
    norm = tg.clip_grad_norm_(parameters, max_norm, p)
    true = 1e200 * (1.0 if math.isinf(p) else 5 ** (1 / p))
    assert norm.dtype is torch.float64
    assert float(norm) == pytest.approx(true, rel=1e-12)
    factor = min(1.0, max_norm / true)
    assert parameters[0].grad.tolist() == pytest.approx([1e200 * factor] * 5, rel=1e-12, abs=0.0)
    assert parameters[1].grad.tolist() == pytest.approx([2.0 * factor] * 3, rel=1e-6, abs=2.0**-149)


def test_finite_float32_gradients_whose_norm_is_none() -> None:
    """3e38 four times has the norm 6e38: clipped as it should be, not zeroed."""
    for grads in ([torch.full((4,), 3e38)], [torch.full((2,), 3e38), torch.full((2,), 3e38).to_sparse()]):
        parameters = [parameter(grad) for grad in grads]
        assert float(tg.clip_grad_norm_(parameters, 1.0)) == math.inf  # 6e38 is not a float32 number
        for made in parameters:
            assert made.grad.to_dense().tolist() == pytest.approx([0.5] * made.numel(), rel=1e-5)
    tg.clip_grad_norm_([parameter(torch.full((4,), 3e38))], 1.0, error_if_nonfinite=True)


def steps(dtype: torch.dtype, plan: tg.Plan, scale: float, numel: int = 4) -> tuple[list[tg.StepRecord], Tensor]:
    """Three steps of gradient `scale` at every entry, with lr = 1."""
    weight = nn.Parameter(torch.zeros(numel, dtype=dtype))
    model = nn.Module()
    model.weight = weight
    pipe = tg.attach(model, torch.optim.SGD([weight], lr=1.0), plan)
    records = []
    for window in pipe.windows([torch.ones(1)] * 3):
        for _ in window:
            pipe.backward((weight * scale).sum())
        records.append(pipe.step())
    return records, weight.detach()


@pytest.mark.parametrize("policy", ["raise", "skip", "zero", "propagate"])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.float64, 1e200), (torch.float64, 1e307), (torch.float32, 3e38)])
def test_the_guard_does_not_call_them_nonfinite(policy: str, dtype: torch.dtype, scale: float) -> None:
    records, weight = steps(dtype, tg.Plan(clip=tg.clip.GlobalNorm(1.0), guard=tg.Guard(policy)), scale)
    for record in records:
        assert not record.skipped
        assert record.grad_norm == pytest.approx(2 * scale, rel=1e-6)
    assert weight.tolist() == pytest.approx([-1.5] * 4, rel=1e-5)


@pytest.mark.parametrize(
    "plan",
    [
        tg.Plan(local_clip=1.0, compress=tg.Compress()),
        tg.Plan(clip=tg.clip.Value(0.5)),
        tg.Plan(clip=tg.clip.PerTensorNorm(1.0)),
        tg.Plan(clip=tg.clip.ZClip(max_norm=1.0)),
    ],
    ids=str,
)
def test_other_plans_at_float64(plan: tg.Plan) -> None:
    records, weight = steps(torch.float64, plan, 1e200)
    assert not any(record.skipped for record in records)
    assert weight.tolist() == pytest.approx([-1.5] * 4, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e200])
@pytest.mark.parametrize(
    "clipper", [tg.clip.AutoClip(50.0), tg.clip.ZClip(warmup_steps=3, z_threshold=1.0), tg.clip.AdaGC(warmup_steps=1)]
)
def test_adaptive_bounds_scale_with_the_norms(clipper: Clipper, scale: float) -> None:
    state: State = {}
    for factor in (1.0, 1.2, 0.9, 1.1, 1.0):
        grads = {"weight": torch.full((4,), factor * scale, dtype=torch.float64)}
        state = clipper.clip_(grads, {}, exact_norm, state).state
    grads = {"weight": torch.full((4,), 1e3 * scale, dtype=torch.float64)}
    clipped = clipper.clip_(grads, {}, exact_norm, state)
    assert float(clipped.total_norm) == pytest.approx(2e3 * scale)
    assert 0 < float(exact_norm(list(grads.values()))) < 5 * scale


def test_zclip_reads_the_variance_of_an_earlier_version() -> None:
    clipper = tg.clip.ZClip(warmup_steps=3, z_threshold=1.0, rule="threshold")
    old = {"zclip_statistics": {MODEL: torch.tensor([3.0, 10.0, 4.0])}}
    new = {"zclip_statistics": {MODEL: torch.tensor([3.0, 10.0, 2.0], dtype=torch.float64)}}
    results = []
    for state in (old, new):
        grads = {"weight": torch.full((4,), 50.0)}
        results.append(clipper.clip_(grads, {}, exact_norm, state))
        assert float(exact_norm(list(grads.values()))) == pytest.approx(12.0, rel=1e-6)
    assert torch.equal(*(result.state["zclip_statistics"][MODEL] for result in results))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("lazy", ["conj", "none"])
def test_complex_functions(dtype: torch.dtype, lazy: str) -> None:
    values = torch.tensor([3 + 4j, -0.3 + 2j, 0.1 - 0.2j], dtype=dtype)
    given = values.conj() if lazy == "conj" else values

    def made() -> nn.Parameter:
        result = nn.Parameter(torch.zeros(3, dtype=dtype))
        result.grad = values.clone().conj() if lazy == "conj" else values.clone()
        assert result.grad.is_conj() == (lazy == "conj")
        return result

    for p, true in ((2.0, math.sqrt(25 + 4.09 + 0.05)), (math.inf, 5.0), (1.0, 5 + math.sqrt(4.09) + math.sqrt(0.05))):
        one = made()
        assert float(tg.clip_grad_norm_([one], 1.0, p)) == pytest.approx(true, rel=1e-6)
        torch.testing.assert_close(one.grad.resolve_conj(), (given / true).resolve_conj(), rtol=1e-5, atol=0)
    assert float(tg.get_total_norm([made().grad], 0.0)) == 3.0
    one = made()
    tg.clip_grad_value_([one], 0.25)
    sign = -1 if lazy == "conj" else 1
    expected = torch.tensor([complex(0.25, 0.25 * sign), complex(-0.25, 0.25 * sign), complex(0.1, -0.2 * sign)])
    torch.testing.assert_close(one.grad.resolve_conj(), expected.to(dtype))


def test_negated_views_and_sparse_complex() -> None:
    negated = torch.tensor([3 + 4j, 1 - 1j]).conj().imag
    assert negated.is_neg()
    one = nn.Parameter(torch.zeros(2))
    one.grad = negated
    assert float(tg.clip_grad_norm_([one], 1.0)) == pytest.approx(math.sqrt(17))
    assert one.grad.tolist() == pytest.approx([-4 / math.sqrt(17), 1 / math.sqrt(17)])
    tg.clip_grad_value_([one], 0.5)
    assert one.grad.tolist() == pytest.approx([-0.5, 1 / math.sqrt(17)])
    indices, entries = torch.tensor([[0, 0, 1]]), torch.tensor([1 + 1j, 2 + 3j, 4j])
    sparse = torch.sparse_coo_tensor(indices, entries, (3,), check_invariants=True)
    assert float(tg.get_total_norm([sparse])) == pytest.approx(math.sqrt(9 + 16 + 16))
    two = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    two.grad = sparse
    tg.clip_grad_value_([two], 1.0)
    assert two.grad.to_dense().tolist() == [1 + 1j, 1j, 0j]


def test_agc_of_complex_weights_is_that_of_their_moduli() -> None:
    grads, weights = drawn(torch.complex64, 10.0), drawn(torch.complex64, 1.0, seed=1)
    moduli = {name: grad.abs() for name, grad in grads.items()}
    expected = {name: grad.clone() for name, grad in grads.items()}
    clipper = tg.clip.AGC(0.1)
    clipper.clip_(grads, {name: nn.Parameter(weight) for name, weight in weights.items()}, exact_norm, {})
    before = {name: value.clone() for name, value in moduli.items()}
    clipper.clip_(moduli, {name: nn.Parameter(weight.abs()) for name, weight in weights.items()}, exact_norm, {})
    for name in grads:
        factors = moduli[name] / before[name]
        assert float(factors.max()) < 1
        torch.testing.assert_close(grads[name], expected[name] * factors, rtol=1e-5, atol=0)


def test_a_complex_entry_that_is_not_finite_is_zeroed_as_a_whole() -> None:
    values = torch.tensor([complex(1, 2), complex(math.nan, 1), complex(1, -math.inf)])
    zero_nonfinite_([values])
    assert values.tolist() == [1 + 2j, 0j, 0j]


@pytest.mark.parametrize("clip", [tg.clip.Value(0.5), tg.clip.AGC(0.5), tg.clip.GlobalNorm(0.5), tg.clip.BlockRMS(0.1)])
def test_complex_parameters_in_a_pipeline(clip: Clipper) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.full((3,), 1 + 1j))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=1.0), tg.Plan(clip=clip))
    for window in pipe.windows([torch.ones(2)]):
        for batch in window:
            pipe.backward((model.weight * 7).abs().square().sum() * batch.mean())
        record = pipe.step()
    assert 0 < record.clip_coef < 1
    moved = model.weight.detach() - (1 + 1j)
    assert float(torch.view_as_real(moved).abs().max()) <= 1.0
    assert float(moved.abs().min()) > 0
