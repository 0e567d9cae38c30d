"""Field cases C5 and C6: gradients under FSDP2, on two real ranks."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.utils import clip_grad_norm_

import tightgrad as tg
from support.ranks import run_ranks
from tightgrad.clip.norm import tensor_norms, total_norm


def attempt(parameters: list[nn.Parameter], **settings: Any) -> Any:
    try:
        norm = clip_grad_norm_(parameters, 1.0, **settings)
    except RuntimeError as error:
        return f"RuntimeError: {error}"[:60]
    return float(norm.to_local() if isinstance(norm, DTensor) else norm)


def whole(grads: list[Tensor]) -> Tensor:
    full = [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]
    return torch.cat([tensor.double().reshape(-1) for tensor in full])


def trained() -> list[nn.Parameter]:
    """A sharded layer, a layer sharded over another mesh, and a plain one."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    other = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicate", "shard"))
    first, second, plain = nn.Linear(5, 3), nn.Linear(3, 4), nn.Linear(4, 2)
    fully_shard(first, mesh=mesh)
    fully_shard(second, mesh=other)
    plain(second(first(torch.ones(2, 5)))).square().sum().mul(100).backward()
    return [*first.parameters(), *second.parameters(), *plain.parameters()]


def mixed_rank() -> dict[str, Any]:
    parameters = trained()
    grads = [parameter.grad for parameter in parameters]
    true = whole(grads)
    found: dict[str, Any] = {"torch": attempt(parameters)}
    for p in (0.0, 1.0, 2.0, 3.0, 7.0, math.inf):
        norm = total_norm(grads, p)
        found[f"plain {p}"] = type(norm) is Tensor
        found[f"norm {p}"] = (float(norm), float(torch.linalg.vector_norm(true, p)))
        each = [float(torch.linalg.vector_norm(whole([grad]), p)) for grad in grads]
        found[f"each {p}"] = (tensor_norms(grads, p).tolist(), each)
    found["returned"] = float(tg.clip_grad_norm_(parameters, 1.0))
    found["after"] = float(whole(grads).norm())
    tg.clip_grad_value_(parameters, 1e-3)
    found["largest"] = float(whole(grads).abs().max())
    return found


def test_c5_several_meshes_and_plain_together(field_row) -> None:
    first, second = run_ranks(2, mixed_rank)
    for found in (first, second):
        for p in (0.0, 1.0, 2.0, 3.0, 7.0, math.inf):
            ours, true = found[f"norm {p}"]
            assert found[f"plain {p}"]
            assert ours == pytest.approx(true, rel=2e-7)
            ours, true = found[f"each {p}"]
            assert ours == pytest.approx(true, rel=2e-7)
        assert found["after"] == pytest.approx(1.0, rel=1e-6)
        assert found["largest"] <= 1e-3 + 1e-9
    assert first["returned"] == second["returned"]
    theirs = str(first["torch"])
    wrong = theirs.startswith("RuntimeError")
    field_row("C5 two meshes and plain", "torch", theirs[:12], f"{first['returned']:.4f}", peer_is_wrong=wrong)


def infinity_rank() -> tuple[float, float, Any]:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    layer(torch.full((2, 4), float(dist.get_rank() + 1))).pow(2).sum().backward()
    parameters = list(layer.parameters())
    true = float(whole([p.grad for p in parameters]).abs().max())
    theirs = clip_grad_norm_(parameters, math.inf, norm_type=math.inf)
    return float(tg.get_total_norm([p.grad for p in parameters], math.inf)), true, theirs.item()


def test_c6_infinity_norm_differs_per_rank(field_row) -> None:
    (first, true, torch_first), (second, _, torch_second) = run_ranks(2, infinity_rank)
    assert first == second == pytest.approx(true, rel=1e-6)
    theirs = f"{torch_first:.2f} / {torch_second:.2f}"
    wrong = torch_first != torch_second
    field_row("C6 infinity norm, ranks 0 / 1", "torch", theirs, f"{first:.2f} / {second:.2f}", peer_is_wrong=wrong)


def placement_rank() -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    value = torch.arange(30.0).view(5, 6) - 7
    found: dict[str, Any] = {}
    for name, placement in (("rows", Shard(0)), ("columns", Shard(1)), ("replicated", Replicate())):
        tensor = distribute_tensor(value.clone(), mesh, [placement])
        found[name] = float(total_norm([tensor]))
        weight = nn.Parameter(distribute_tensor(torch.ones(5, 6), mesh, [placement]))
        tg.clip.AGC(clip_factor=0.1).clip_({"w": tensor}, {"w": weight}, total_norm, {})
        found[f"agc {name}"] = tensor.full_tensor()
    found["summed"] = float(total_norm([DTensor.from_local(value, mesh, [Partial()])]))
    partial = DTensor.from_local(value, mesh, [Partial("avg")])
    try:
        total_norm([partial])
    except tg.UnsupportedError as error:
        found["partial"] = str(error)
    bad = distribute_tensor(value.clone(), mesh, [Shard(0)])
    if dist.get_rank() == 1:
        bad.to_local()[0, 0] = math.nan
    found["nan"] = [float(total_norm([bad], p)) for p in (1.0, 2.0, math.inf)]
    return found


def test_placements() -> None:
    value = torch.arange(30.0).view(5, 6) - 7
    plain = {"w": value.clone()}
    tg.clip.AGC(clip_factor=0.1).clip_(plain, {"w": nn.Parameter(torch.ones(5, 6))}, total_norm, {})
    for found in run_ranks(2, placement_rank):
        for name in ("rows", "columns", "replicated"):
            assert found[name] == pytest.approx(float(value.double().norm()), rel=1e-6), name
            torch.testing.assert_close(found[f"agc {name}"], plain["w"], rtol=1e-6, atol=0)
        assert found["summed"] == pytest.approx(float(2 * value.double().norm()), rel=1e-6)
        assert "redistribute" in found["partial"]
        assert "Partial(avg)" in found["partial"]
        assert all(math.isnan(norm) for norm in found["nan"])
