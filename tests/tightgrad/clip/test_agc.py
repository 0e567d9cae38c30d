"""AGC against timm's formula (timm 1.0, utils/agc.py), and on shards."""

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.clip.norm import total_norm

SHAPES = {"linear.weight": (5, 6), "linear.bias": (5,), "conv": (4, 3, 2, 2), "scale": (), "head.weight": (2, 5)}


def drawn(scale: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * scale for name, shape in SHAPES.items()}


def timm_reference(grad: Tensor, weight: Tensor, factor: float, eps: float) -> Tensor:
    def unitwise(tensor: Tensor) -> Tensor:
        return tensor.norm() if tensor.ndim <= 1 else tensor.norm(2, dim=tuple(range(1, tensor.ndim)), keepdim=True)

    bound = unitwise(weight).clamp(min=eps) * factor
    norm = unitwise(grad)
    return torch.where(norm < bound, grad, grad * (bound / norm.clamp(min=1e-6)))


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 10.0])
def test_equals_timm(scale: float) -> None:
    grads, weights = drawn(scale, 0), drawn(1.0, 1)
    expected = {name: timm_reference(grads[name], weights[name], 0.01, 1e-3) for name in grads}
    expected["head.weight"] = grads["head.weight"].clone()
    params = {name: nn.Parameter(weight) for name, weight in weights.items()}
    tg.clip.AGC(exclude=("head.*",)).clip_(grads, params, total_norm, {})
    for name in grads:
        torch.testing.assert_close(grads[name], expected[name], rtol=1e-6, atol=0)


def test_zero_weights_learn() -> None:
    weight = nn.Parameter(torch.zeros(3, 4))
    grads = {"weight": torch.ones(3, 4)}
    tg.clip.AGC(clip_factor=0.1, eps=1e-3).clip_(grads, {"weight": weight}, total_norm, {})
    torch.testing.assert_close(grads["weight"].norm(dim=1), torch.full((3,), 1e-4))


def test_unit_axis() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    grads = {"weight": torch.tensor([[100.0, 0.0, 0.0], [100.0, 0.0, 1e-6]])}
    tg.clip.AGC(clip_factor=1.0, unit_axis=1).clip_(grads, {"weight": weight}, total_norm, {})
    torch.testing.assert_close(grads["weight"], torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 1e-6]]))


def test_nothing_is_touched_below_the_bound() -> None:
    grads = {"weight": torch.full((2, 2), 1e-9)}
    version = grads["weight"]._version
    clipped = tg.clip.AGC().clip_(grads, {"weight": nn.Parameter(torch.ones(2, 2))}, total_norm, {})
    assert grads["weight"]._version == version
    assert float(clipped.clip_coef) == 1.0


@pytest.mark.parametrize("settings", [{"clip_factor": 0.0}, {"eps": 0.0}, {"unit_axis": -1}, {"exclude": "head"}])
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(tg.ConfigError):
        tg.clip.AGC(**settings)
