"""AGC against timm's formula (timm 1.0, utils/agc.py), the rules of the paper's code, and optax where it is there."""

from typing import Any

import numpy as np
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


def clipped(grad: Tensor, weight: Tensor, **settings: Any) -> Tensor:
    grads = {"weight": grad.clone()}
    tg.clip.AGC(0.01, **settings).clip_(grads, {"weight": nn.Parameter(weight)}, total_norm, {})
    return grads["weight"]


def by_paper(grad: Tensor, weight: Tensor) -> Tensor:
    """Units as the paper's code counts them, its layouts IO and HWIO turned into torch's OI and OIHW: over all of what
    is a vector but for dimensions of length 1, else over all but the output.
    """
    dims = tuple(range(grad.dim())) if grad.squeeze().dim() <= 1 else tuple(range(1, grad.dim()))
    bound = 0.01 * weight.double().norm(2, dims, keepdim=True).clamp(min=1e-3)
    return grad.double() * (bound / grad.double().norm(2, dims, keepdim=True)).clamp(max=1.0)


LIKE_VECTORS = ((7, 1), (1, 7), (7,), (), (1,), (1, 1), (7, 1, 1, 1), (1, 7, 1, 1), (1, 1, 7), (7, 1, 1))


def uneven(shape: tuple[int, ...], seed: int) -> Tensor:
    """Some units far above the bound, some far below."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-4, 2, shape, generator=generator)


@pytest.mark.parametrize("shape", [*LIKE_VECTORS, (6, 5), (4, 3, 2, 2), (4, 1, 3, 3)])
def test_units_are_those_of_the_papers_code(shape: tuple[int, ...]) -> None:
    grad, weight = uneven(shape, 0), uneven(shape, 1)
    expected = by_paper(grad, weight)
    assert not torch.equal(expected.float(), grad)
    torch.testing.assert_close(clipped(grad, weight).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", LIKE_VECTORS)
@pytest.mark.parametrize("axis", [0, 1, 3])
def test_what_is_a_vector_is_one_unit_whatever_the_axis(shape: tuple[int, ...], axis: int) -> None:
    grad, weight = uneven(shape, 0), uneven(shape, 1)
    found = clipped(grad, weight, unit_axis=axis)
    assert float((found / grad).max() - (found / grad).min()) < 1e-6
    torch.testing.assert_close(found, clipped(grad.flatten(), weight.flatten()).view(shape), rtol=1e-6, atol=0)


def in_optax(grad: Tensor, weight: Tensor, axis: tuple[int, ...] | None = None) -> Tensor:
    """Clipped by optax with outputs last, as there."""
    optax = pytest.importorskip("optax")
    order = (*range(1, grad.dim()), 0)
    there = [{"weight": np.ascontiguousarray(one.permute(order).numpy())} for one in (grad, weight)]
    method = optax.adaptive_grad_clip(0.01, eps=1e-3) if axis is None else optax.adaptive_grad_clip(0.01, 1e-3, axis)
    found = torch.from_numpy(np.array(method.update(there[0], method.init(there[1]), there[1])[0]["weight"]))
    return found.permute(tuple(order.index(dim) for dim in range(grad.dim())))


@pytest.mark.parametrize("shape", [(7,), (6, 5), (7, 1), (1, 7), (4, 3, 2, 2), (4, 1, 1, 1), (4, 3, 2, 2, 2)])
def test_equals_optax(shape: tuple[int, ...]) -> None:
    grad, weight = uneven(shape, 0), uneven(shape, 1)
    torch.testing.assert_close(clipped(grad, weight), in_optax(grad, weight), rtol=1e-6, atol=0)


def test_a_weight_of_three_dimensions_is_a_conv1d_and_in_optax_multi_head() -> None:
    """The card says so. With the axes of a convolution, optax agrees."""
    grad, weight = uneven((4, 3, 5), 0), uneven((4, 3, 5), 1)
    ours = clipped(grad, weight)
    torch.testing.assert_close(ours, in_optax(grad, weight, (0, 1)), rtol=1e-6, atol=0)
    assert not torch.allclose(ours, in_optax(grad, weight), rtol=1e-2)
    assert "Conv1d" in tg.clip.AGC.card.reference


@pytest.mark.parametrize("settings", [{"clip_factor": 0.0}, {"eps": 0.0}, {"unit_axis": -1}, {"exclude": "head"}])
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(tg.ConfigError):
        tg.clip.AGC(**settings)
