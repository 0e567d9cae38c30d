"""What LARS and LAMB share."""

import copy
import io
from typing import Any

import pytest
import torch

from support.in_turn import in_turn
from support.layerwise import (
    OPTIMIZERS,
    fit,
    fit_sharded,
    make_gradients,
    make_model,
    make_parameters,
    train,
)
from support.ranks import run_ranks
from tightgrad.core.errors import ConfigError, UnsupportedError
from tightgrad.scaling.layerwise import tensor_norms

RUNS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("lars", {"lr": 0.1, "trust_coefficient": 0.3, **settings})
        for settings in (
            {},
            {"weight_decay": 0.1, "momentum_rule": "nesterov"},
            {"weight_decay": 0.1, "lr_position": "inside"},
            {"momentum": 0.0},
            {"layer_adaptation": "none", "momentum": 0.0, "lr_position": "inside"},
        )
    ),
    *(
        ("lamb", {"lr": 0.1, **settings})
        for settings in ({}, {"weight_decay": 0.0}, {"layer_adaptation": "none"}, {"betas": (0.5, 0.0), "eps": 0.1})
    ),
]
# Under other orders of float32 operations: a few units of 2^-24 a step.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}
every_run = pytest.mark.parametrize(("name", "settings"), RUNS, ids=str)
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def difference(have: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(have, want, strict=True))


@every_run
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_foreach_equals_the_reference(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    results = {
        implementation: train(
            OPTIMIZERS[name](make_parameters(dtype), implementation=implementation, **settings), make_gradients(dtype)
        )
        for implementation in ("single_tensor", "foreach")
    }
    assert difference(results["foreach"], results["single_tensor"]) < TOLERANCE[dtype]
    assert all(
        float((after - before.detach()).norm()) > 1e-3
        for after, before in zip(results["foreach"], make_parameters(dtype), strict=True)
    )


@pytest.mark.parametrize(
    ("mesh_shape", "implementation"), in_turn([(2,), (2, 1), (1, 2)], ["foreach", "single_tensor"])
)
def test_sharded_equals_unsharded(mesh_shape: tuple[int, ...], implementation: str) -> None:
    runs = [(name, {**settings, "implementation": implementation}) for name, settings in RUNS]
    by_rank = run_ranks(2, fit_sharded, mesh_shape, runs)
    for (name, settings), *results in zip(RUNS, *by_rank, strict=True):
        model = make_model()
        fit(model, name, settings)
        wanted = [p.detach() for p in model.parameters()]
        assert difference(results[0]["params"], wanted) < 1e-6, (name, settings)
        assert all(torch.equal(a, b) for a, b in zip(results[0]["params"], results[1]["params"], strict=True))
        if name == "lamb" or settings.get("momentum") != 0.0:
            assert all(result["state_like_params"] for result in results), (name, settings)
        whole = sum(parameter.numel() for parameter in model.parameters())
        assert sum(result["local_numel"] for result in results) == whole * (2 if mesh_shape == (2, 1) else 1)


@every_run
def test_resume_is_bitwise(name: str, settings: dict[str, Any]) -> None:
    gradients = make_gradients()
    whole = train(OPTIMIZERS[name](make_parameters(), **settings), gradients)

    first = OPTIMIZERS[name](make_parameters(), **settings)
    halfway = train(first, gradients[:3])
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second = OPTIMIZERS[name]([torch.nn.Parameter(value) for value in halfway], lr=123.0)
    second.load_state_dict(torch.load(saved, weights_only=True))
    resumed = train(second, gradients[3:])
    assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))


@every_run
@pytest.mark.parametrize("implementation", ["foreach", "single_tensor"])
def test_gradients_are_left_as_they_are(name: str, settings: dict[str, Any], implementation: str) -> None:
    params, (row, *_) = make_parameters(), make_gradients()
    for param, grad in zip(params, row, strict=True):
        param.grad = grad.clone()
    optimizer = OPTIMIZERS[name](params, **{"weight_decay": 0.0, **settings, "implementation": implementation})
    optimizer.step()
    optimizer.step()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(params, row, strict=True))


@every_optimizer
def test_nonfinite_gradients_are_not_hidden(name: str) -> None:
    for value in (torch.nan, torch.inf):
        param = torch.nn.Parameter(torch.ones(2))
        train(OPTIMIZERS[name]([param], lr=0.1), [[torch.tensor([1.0, value])]])
        assert not bool(torch.isfinite(param).all())


@every_optimizer
def test_mixed_dtypes(name: str) -> None:
    params = [torch.nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)]
    gradients = [[torch.full((3,), 0.5, dtype=param.dtype) for param in params]]
    together = train(OPTIMIZERS[name](copy.deepcopy(params), lr=100.0), gradients)
    for index, param in enumerate(copy.deepcopy(params)):
        (alone,) = train(OPTIMIZERS[name]([param], lr=100.0), [[gradients[0][index]]])
        assert torch.equal(alone, together[index])
        assert alone.dtype == params[index].dtype
        assert not torch.equal(alone, params[index])


@every_optimizer
def test_closure(name: str) -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = OPTIMIZERS[name]([param], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 3.0
    assert float(param.detach().norm()) < 3**0.5


@every_optimizer
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": -1.0}, "lr"),
        ({"layer_adaptation": "all"}, "trust_ratio"),
        ({"implementation": "fused"}, "foreach"),
        ({"eps": -1.0}, "eps"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_settings_are_checked_in_defaults_and_groups(name: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        OPTIMIZERS[name](make_parameters(), **{"lr": 0.1, **settings})
    with pytest.raises(ConfigError, match=named):
        OPTIMIZERS[name]([{"params": make_parameters(), **settings}], lr=0.1)


@every_optimizer
def test_sparse_and_complex_gradients_are_refused_before_anything_changes(name: str) -> None:
    ordinary = torch.nn.Parameter(torch.ones(2))
    ordinary.grad = torch.ones(2)
    for awkward in (torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))):
        awkward.grad = torch.ones_like(awkward) if awkward.is_complex() else torch.ones(2).to_sparse()
        with pytest.raises(UnsupportedError, match="complex" if awkward.is_complex() else "sparse"):
            OPTIMIZERS[name]([ordinary, awkward], lr=0.1).step()
        assert torch.equal(ordinary, torch.ones(2))


def test_norms_neither_overflow_nor_underflow() -> None:
    norms = tensor_norms([torch.full((4,), 1e30), torch.full((4,), 1e-30), torch.zeros(0)])
    assert [float(norm) for norm in norms] == pytest.approx([2e30, 2e-30, 0.0], rel=1e-6)
