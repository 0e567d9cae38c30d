"""LARS and LAMB on every placement of both axes of a mesh, against whole tensors on one process."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate

from support.layerwise import OPTIMIZERS
from support.placements import SHAPES, make_mesh, place, strided, summands, values, whole
from support.ranks import run_ranks
from tightgrad.core.errors import UnsupportedError
from tightgrad.scaling.layerwise import tensor_norms

SETTINGS: dict[str, dict[str, Any]] = {
    "lars": {"lr": 0.1, "trust_coefficient": 0.3, "weight_decay": 0.1},
    "lamb": {"lr": 0.1},
}
REFUSED = {"avg": [Partial("avg"), Replicate()], "max": [Replicate(), Partial("max")]}


def trained(optimizer: torch.optim.Optimizer, params: dict[str, nn.Parameter], place_grad: Any) -> dict[str, Tensor]:
    for step in range(3):
        for name, grad in values(SHAPES, torch.float32, seed=20 + step, scale=10.0**step).items():
            params[name].grad = place_grad(name, grad)
        optimizer.step()
    return {name: whole(parameter.detach()) for name, parameter in params.items()}


def summed_grad(name: str, grad: Tensor, mesh: Any) -> Tensor:
    """Of replicated parameters the gradient may still be a sum over ranks."""
    return summands("sum", grad, mesh) if name == "replicated" else place(name, grad, mesh)


def layerwise_rank() -> list[tuple[str, dict[str, Tensor], dict[str, Tensor]]]:
    mesh, found = make_mesh(), []
    weights = values(SHAPES, torch.float32, seed=1)
    for name, settings in SETTINGS.items():
        for implementation in ("foreach", "single_tensor"):
            plain = {n: nn.Parameter(weight.clone()) for n, weight in weights.items()}
            placed = {n: nn.Parameter(place(n, weight, mesh)) for n, weight in weights.items()}
            make = OPTIMIZERS[name]
            theirs = trained(make(plain.values(), implementation=implementation, **settings), plain, lambda n, g: g)
            ours = trained(
                make(placed.values(), implementation=implementation, **settings),
                placed,
                lambda n, g: summed_grad(n, g, mesh),
            )
            found.append((f"{name} {implementation}", ours, theirs))
    return found


def test_every_placement_has_one_ratio() -> None:
    by_rank = run_ranks(4, layerwise_rank)
    for found in by_rank:
        for index, (name, ours, theirs) in enumerate(found):
            for parameter, value in ours.items():
                assert torch.equal(value, by_rank[0][index][1][parameter]), (name, parameter)
                torch.testing.assert_close(value, theirs[parameter], rtol=1e-5, atol=1e-6, msg=f"{name} {parameter}")


def norms_rank() -> list[tuple[float, float]]:
    mesh, rows = make_mesh(), []
    for scale in (1.0, 1e200, 1e-200):
        plain = values(SHAPES, torch.float64, seed=2, scale=scale)
        placed = [place(name, value, mesh) for name, value in plain.items()]
        single = strided(plain["strided"].float(), 0, mesh)
        norms = [float(norm) for norm in tensor_norms([*placed, single])]
        wanted = [*plain.values(), plain["strided"].float().double()]
        rows += zip(norms, [float((v / scale).norm() * scale) for v in wanted], strict=True)
        bad = plain["strided"].clone()
        bad[-1, -1] = math.nan
        rows.append((float(tensor_norms([strided(bad, 0, mesh)])[0].isnan()), 1.0))
    return rows


def test_norms_of_float64_beyond_the_range_of_their_squares() -> None:
    by_rank = run_ranks(4, norms_rank)
    assert all(rows == by_rank[0] for rows in by_rank)
    for ours, true in by_rank[0]:
        assert ours == pytest.approx(true if true < math.inf else math.inf, rel=1e-6, abs=0.0)


def refused_rank() -> dict[str, Any]:
    mesh, found = make_mesh(), {}
    for optimizer in OPTIMIZERS:
        for name, lies in REFUSED.items():
            first, second = (nn.Parameter(place("replicated", torch.ones(4, 2), mesh)) for _ in range(2))
            first.grad = place("replicated", torch.ones(4, 2), mesh)
            second.grad = DTensor.from_local(torch.ones(4, 2), mesh, lies, run_check=False)
            groups = [{"params": [first]}, {"params": [second]}]
            with pytest.raises(UnsupportedError, match=name):
                OPTIMIZERS[optimizer](groups, lr=0.1).step()
            found[f"{optimizer} {name}"] = whole(first.detach())
        with pytest.raises(UnsupportedError, match="summand"):
            OPTIMIZERS[optimizer]([nn.Parameter(summands("sum", torch.ones(3, 4), mesh))], lr=0.1)
    return found


def test_unknown_placements_are_refused_before_anything_changes() -> None:
    for found in run_ranks(4, refused_rank):
        assert all(torch.equal(weight, torch.ones(4, 2)) for weight in found.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_complex_parameters_are_refused_when_added(name: str) -> None:
    real = nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS[name]([real], lr=0.1)
    with pytest.raises(UnsupportedError, match="complex"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_sparse_gradient_of_a_later_group_changes_nothing(name: str) -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    first.grad, second.grad = torch.ones(2), torch.ones(2).to_sparse()
    with pytest.raises(UnsupportedError, match="sparse"):
        OPTIMIZERS[name]([{"params": [first]}, {"params": [second]}], lr=0.1).step()
    assert torch.equal(first, torch.ones(2))
