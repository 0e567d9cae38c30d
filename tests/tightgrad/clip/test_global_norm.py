"""GlobalNorm next to its namesake in torch."""

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.clip.norm import total_norm


def gradients(scale):
    generator = torch.Generator().manual_seed(4)
    return {
        name: torch.randn(shape, generator=generator) * scale
        for name, shape in (("a", (31, 7)), ("b", (5,)), ("c", ()))
    }


@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 1e4])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, float("inf")])
def test_compat_is_torch(scale, norm_type):
    ours = gradients(scale)
    parameters = [nn.Parameter(torch.zeros_like(grad)) for grad in ours.values()]
    for parameter, grad in zip(parameters, ours.values(), strict=True):
        parameter.grad = grad.clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, 0.7, norm_type)
    clipped = tg.clip.GlobalNorm(0.7, norm_type, compat="torch").clip_(ours, {}, total_norm, {})
    # Torch adds up in float32 in another order: a few roundings of 2^-24.
    torch.testing.assert_close(clipped.total_norm, expected, rtol=1e-6, atol=0.0)
    for parameter, grad in zip(parameters, ours.values(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=2e-6, atol=0.0)


def test_an_infinite_bound_measures_and_changes_no_bit():
    grads = gradients(1e30)
    before = {name: grad.clone() for name, grad in grads.items()}
    clipped = tg.clip.GlobalNorm(float("inf")).clip_(grads, {}, total_norm, {})
    assert float(clipped.clip_coef) == 1.0
    assert float(clipped.total_norm) > 1e30
    assert all(torch.equal(grads[name], before[name]) for name in grads)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tg.clip.GlobalNorm(0), "max_norm=0 must be above 0"),
        (lambda: tg.clip.GlobalNorm(-1.0), "max_norm=-1 must be above 0"),
        (lambda: tg.clip.GlobalNorm(float("nan")), "max_norm=nan must be a number"),
        (lambda: tg.clip.GlobalNorm(1.0, norm_type=0), "norm_type=0 must be above 0"),
        (lambda: tg.clip.GlobalNorm(1.0, compat="tensorflow"), r"compat='tensorflow'.*'exact', 'torch'"),
        (lambda: tg.clip.Value(0.0), "max_value=0 must be above 0"),
    ],
)
def test_settings_out_of_bounds(make, words):
    with pytest.raises(tg.ConfigError, match=words):
        make()
