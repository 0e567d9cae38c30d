"""Norms and clippers on the device: the CPU's numbers, and nobody waits."""

import math

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg
from conformance.cases import CLIPPERS, ClipCase
from support.device import DEVICE, skip_without_device, without_waiting
from tightgrad.clip.norm import tensor_norms, total_norm
from tightgrad.core.types import Grads, State

skip_without_device()
ROUNDING = 1e-6
SHAPES = {"conv": (4, 3, 3, 3), "bias": (7,), "matrix": (50, 600), "scalar": (), "empty": (0, 3), "long": (200_003,)}
NORM_TYPES = (0.0, 0.5, 1.0, 2.0, 3.0, 7.0, math.inf)


def gradients(scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> Grads:
    drawing = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=drawing) * scale).to(dtype) for name, shape in SHAPES.items()}


def there(grads: Grads) -> Grads:
    return {name: grad.to(DEVICE, copy=True) for name, grad in grads.items()}


def parameters(device: torch.device) -> list[nn.Parameter]:
    made = []
    for name, grad in gradients(3.0).items():
        parameter = nn.Parameter(torch.full(grad.shape, 0.1 * len(name), device=device))
        parameter.grad = grad.to(device)
        made.append(parameter)
    return made


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_norms(norm_type: float, scale: float, dtype: torch.dtype) -> None:
    here = gradients(scale, dtype=dtype)
    values = list(there(here).values())
    with without_waiting():
        norm = total_norm(values, norm_type)
        each = tensor_norms(values, norm_type)
    assert norm.device.type == DEVICE.type
    assert norm.dtype == each.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    expected = total_norm(list(here.values()), norm_type)
    torch.testing.assert_close(norm.cpu(), expected, rtol=ROUNDING, atol=0.0)
    torch.testing.assert_close(
        each.cpu(), tensor_norms(list(here.values()), norm_type), rtol=ROUNDING, atol=0.0, equal_nan=True
    )


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 7.0, math.inf])
def test_what_is_not_finite_comes_through(value: float, norm_type: float) -> None:
    grads = there(gradients())
    grads["bias"][3] = value
    assert not math.isfinite(float(total_norm(list(grads.values()), norm_type)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float16], ids=str)
def test_norms_of_other_dtypes(dtype: torch.dtype) -> None:
    here = [torch.randn(300, dtype=dtype, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    for norm_type in (1.0, 2.0, math.inf):
        found = total_norm([tensor.to(DEVICE) for tensor in here], norm_type)
        torch.testing.assert_close(found.cpu(), total_norm(here, norm_type), rtol=ROUNDING, atol=0.0)


def test_a_norm_over_two_devices_is_on_the_gpu() -> None:
    here = list(gradients().values())
    mixed = [tensor if index % 2 else tensor.to(DEVICE) for index, tensor in enumerate(here)]
    norm = total_norm(mixed)
    assert norm.device.type == DEVICE.type
    torch.testing.assert_close(norm.cpu(), total_norm(here), rtol=ROUNDING, atol=0.0)


@pytest.mark.parametrize("case", CLIPPERS, ids=lambda case: repr(case.clipper))
def test_every_clipper(case: ClipCase) -> None:
    """Three steps, so that what is remembered is used; from small to large."""
    params = {name: nn.Parameter(torch.full(shape, 0.1)) for name, shape in SHAPES.items()}
    params_there = {name: nn.Parameter(parameter.detach().to(DEVICE)) for name, parameter in params.items()}
    state: State = {}
    state_there: State = {}
    for step, scale in enumerate((1e-4, 1.0, 100.0)):
        here = gradients(scale, seed=step)
        grads = there(here)
        with torch.no_grad():
            clipped = case.clipper.clip_(here, params, total_norm, state)
            with without_waiting():
                found = case.clipper.clip_(grads, params_there, total_norm, state_there)
        for name, grad in grads.items():
            torch.testing.assert_close(grad.cpu(), here[name], rtol=4 * ROUNDING, atol=0.0, msg=f"{name} {step}")
        torch.testing.assert_close(found.total_norm.cpu(), clipped.total_norm, rtol=ROUNDING, atol=0.0)
        torch.testing.assert_close(found.clip_coef.cpu(), clipped.clip_coef, rtol=4 * ROUNDING, atol=0.0)
        state = {**state, **clipped.state}
        state_there = {**state_there, **found.state}
        for slot, held in state.items():
            for key, tensor in held.items():
                other = state_there[slot][key]
                assert other.device.type == DEVICE.type, (slot, key)
                torch.testing.assert_close(other.cpu(), tensor, rtol=1e-5, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("max_norm", [0.5, 1e9, math.inf])
@pytest.mark.parametrize("compat", ["exact", "torch"])
def test_the_drop_in(max_norm: float, compat: str) -> None:
    here, other = parameters(torch.device("cpu")), parameters(DEVICE)
    expected = tg.clip_grad_norm_(here, max_norm, compat=compat)
    with without_waiting():
        found = tg.clip_grad_norm_(other, max_norm, compat=compat)
    torch.testing.assert_close(found.cpu(), expected, rtol=ROUNDING, atol=0.0)
    for one, two in zip(other, here, strict=True):
        torch.testing.assert_close(grad_of(one).cpu(), grad_of(two), rtol=4 * ROUNDING, atol=0.0)
    if math.isinf(max_norm):
        for one, two in zip(other, parameters(DEVICE), strict=True):
            assert torch.equal(grad_of(one), grad_of(two))


def test_the_other_drop_ins() -> None:
    here, other = parameters(torch.device("cpu")), parameters(DEVICE)
    with without_waiting():
        norm = tg.get_total_norm([grad_of(p) for p in other])
        tg.clip_grad_value_(other, 0.25)
    torch.testing.assert_close(norm.cpu(), tg.get_total_norm([grad_of(p) for p in here]), rtol=ROUNDING, atol=0.0)
    tg.clip_grad_value_(here, 0.25)
    for one, two in zip(other, here, strict=True):
        assert torch.equal(grad_of(one).cpu(), grad_of(two))


def test_tied_parameters_count_once_and_sparse_gradients_work() -> None:
    embedding = nn.Embedding(50, 8, sparse=True).to(DEVICE)
    (embedding(torch.tensor([3, 3, 7], device=DEVICE)).square().sum() * 100).backward()
    (plain,) = (parameter for parameter in parameters(DEVICE) if parameter.shape == (7,))
    listed = [plain, embedding.weight, plain]
    dense = [grad_of(plain).clone(), grad_of(embedding.weight).to_dense()]
    expected = torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in dense]))
    norm = tg.clip_grad_norm_(listed, 0.5)
    assert float(norm) == pytest.approx(float(expected), rel=ROUNDING)
    after = [grad_of(plain), grad_of(embedding.weight).to_dense()]
    assert float(torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in after]))) == pytest.approx(0.5, 1e-6)


def test_an_error_for_norms_that_are_not_finite_changes_nothing() -> None:
    params = parameters(DEVICE)
    grad_of(params[0])[0, 0] = math.nan
    before = [grad_of(parameter).clone() for parameter in params]
    with pytest.raises(RuntimeError, match="cannot be clipped"):
        tg.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    for parameter, old in zip(params, before, strict=True):
        assert torch.equal(grad_of(parameter), old) or bool(old.isnan().any())


def grad_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
