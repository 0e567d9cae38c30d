"""The drop-ins behave like torch's where torch is right."""

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg


def parameter(grad: Tensor | None) -> nn.Parameter:
    made = nn.Parameter(torch.zeros_like(grad) if grad is not None else torch.zeros(2))
    made.grad = grad.clone() if grad is not None else None
    return made


def drawn(scale: float = 1.0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((300, 400), (7,), (), (4, 3, 3, 3))
    return [parameter(torch.randn(shape, generator=generator) * scale) for shape in shapes] + [parameter(None)]


@pytest.mark.parametrize("name", ["clip_grad_norm_", "clip_grad_value_", "get_total_norm"])
def test_signature_starts_like_torchs(name: str) -> None:
    theirs = inspect.signature(getattr(torch.nn.utils, name)).parameters
    ours = inspect.signature(getattr(tg, name)).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for key, value in theirs.items():
        assert (ours[key].default, ours[key].kind) == (value.default, value.kind)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_equals_torch_with_torchs_epsilon(scale: float, p: float) -> None:
    ours, theirs = drawn(scale), drawn(scale)
    norm = tg.clip_grad_norm_(ours, 0.5, norm_type=p, compat="torch")
    expected = torch.nn.utils.clip_grad_norm_(theirs, 0.5, norm_type=p)
    # torch sums 120000 powers in float32, cubes one by one; ours is within 1e-6.
    rtol = 5e-5 if p == 3.0 else 1e-5
    torch.testing.assert_close(norm, expected, rtol=rtol, atol=0)
    for one, other in zip(ours, theirs, strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=rtol, atol=0)


def test_exact_bound_and_untouched_below_it() -> None:
    at_the_bound = parameter(torch.full((4,), 1e-6))
    tg.clip_grad_norm_(at_the_bound, 2e-6)
    assert float(at_the_bound.grad.norm()) == pytest.approx(2e-6, rel=1e-6)
    version = at_the_bound.grad._version
    tg.clip_grad_norm_([at_the_bound], 1.0)
    assert at_the_bound.grad._version == version


def test_measuring_changes_nothing() -> None:
    made = parameter(torch.full((1000,), 3e38))
    before = made.grad.clone()
    assert float(tg.clip_grad_norm_([made], math.inf)) == math.inf  # 9e39 is not a float32 number
    assert torch.equal(made.grad, before)


def test_error_if_nonfinite_comes_before_any_change() -> None:
    good, bad = parameter(torch.ones(3)), parameter(torch.tensor([1.0, math.nan]))
    with pytest.raises(RuntimeError, match="nothing was changed"):
        tg.clip_grad_norm_([good, bad], 1.0, error_if_nonfinite=True)
    assert torch.equal(good.grad, torch.ones(3))


def test_zero_bound_and_no_gradients() -> None:
    made = parameter(torch.ones(3))
    tg.clip_grad_norm_(made, 0.0)
    assert not made.grad.any()
    assert float(tg.clip_grad_norm_([parameter(None)], 1.0)) == 0.0
    assert float(tg.get_total_norm([])) == 0.0


def test_exhausted_generator_warns() -> None:
    with pytest.warns(UserWarning, match="exhausted"):
        tg.clip_grad_norm_((p for p in ()), 1.0)


def test_value() -> None:
    ours, theirs = drawn(), drawn()
    tg.clip_grad_value_((p for p in ours), 0.5)
    torch.nn.utils.clip_grad_value_(theirs, 0.5)
    for one, other in zip(ours, theirs, strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_sparse_and_dense_together() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    linear = nn.Linear(4, 4)
    (linear(embedding(torch.tensor([1, 2, 2]))) * 100).sum().backward()
    parameters = [*embedding.parameters(), *linear.parameters()]
    dense = [p.grad.to_dense().double() for p in parameters]
    expected = float(torch.cat([grad.reshape(-1) for grad in dense]).norm())
    assert float(tg.clip_grad_norm_(parameters, 1.0)) == pytest.approx(expected, rel=1e-6)
    after = torch.cat([p.grad.to_dense().double().reshape(-1) for p in parameters])
    assert float(after.norm()) == pytest.approx(1.0, rel=1e-6)
    tg.clip_grad_value_(parameters, 2.0**-10)
    assert max(float(p.grad.to_dense().abs().max()) for p in parameters) <= 2.0**-10


@pytest.mark.parametrize("settings", [{"max_norm": -1.0}, {"max_norm": 1.0, "norm_type": -2.0}, {"max_norm": math.nan}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(tg.ConfigError):
        tg.clip_grad_norm_([parameter(torch.ones(2))], **settings)
