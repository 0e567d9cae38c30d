"""Norms and clippers on a 2x2 mesh: sharded, replicated and plain gradients together, against one process."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import full, small_model, wrap
from tightgrad.clip.norm import tensor_norms, total_norm

ORDERS = (0.0, 1.0, 2.0, 3.0, math.inf)
SHAPES = ((5, 6), (7,), (3, 3, 3, 3), (1, 4), (2, 9))  # four ranks divide none of them; some shards are empty
SCALES = (1e-30, 1.0, 1e30)


def odd_and_even() -> list[list[str]]:
    return [[str(index) for index in range(start, 100, 2)] for start in (1, 0)]


CLIPPERS = (
    tg.clip.AGC(clip_factor=0.3),
    tg.clip.AGC(clip_factor=0.3, unit_axis=1),
    tg.clip.GlobalNorm(1.0),
    tg.clip.GlobalNorm(1.0, norm_type=math.inf),
    tg.clip.PerTensorNorm(0.5),
    tg.clip.BlockRMS(0.3),
    tg.clip.AdaGC(max_norm=0.7),
    tg.clip.Value(0.2),
    tg.clip.ByName((("1*", tg.clip.AGC(0.3)), ("2*", tg.clip.GlobalNorm(0.5))), default=tg.clip.PerTensorNorm(0.5)),
    tg.clip.Chain((tg.clip.Value(0.5), tg.clip.GlobalNorm(1.0))),
    tg.clip.PerOptimizer((tg.clip.GlobalNorm(0.5), tg.clip.AGC(0.3))).for_optimizers(odd_and_even),
)


def whole_tensors(scale: float, seed: int = 0) -> list[Tensor]:
    """One of each shape for each of the six ways to lie, some entries zero."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator) * scale for _ in range(6) for shape in SHAPES]
    for tensor in drawn:
        tensor.view(-1)[0] = 0.0
    return drawn


def meshes() -> tuple[DeviceMesh, DeviceMesh]:
    """Two by two, and all four in a row; each makes process groups."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")), init_device_mesh("cpu", (4,))


def laid_out(over: tuple[DeviceMesh, DeviceMesh], tensors: list[Tensor]) -> list[Tensor]:
    """HSDP, sharded along both axes of its mesh, over another mesh of all ranks, replicated there, and plain."""
    hybrid, flat = over
    ways: tuple[tuple[Any, list[Any]] | None, ...] = (
        (hybrid, [Replicate(), Shard(0)]),
        (hybrid, [Replicate(), Shard(-1)]),
        (hybrid, [Shard(0), Shard(-1)]),
        (flat, [Shard(0)]),
        (flat, [Replicate()]),
        None,
    )
    placed = []
    for index, tensor in enumerate(tensors):
        way = ways[index // len(SHAPES)]
        if way is None:
            placed.append(tensor.clone())
        else:
            mesh, placements = way
            both = tensor.dim() == 1 and placements == [Shard(0), Shard(-1)]
            placed.append(distribute_tensor(tensor.clone(), mesh, [Replicate(), Shard(0)] if both else placements))
    return placed


def measured() -> dict[tuple[float, float], tuple[Tensor, Tensor]]:
    found, over = {}, meshes()
    for scale in SCALES:
        placed = laid_out(over, whole_tensors(scale))
        for p in ORDERS:
            found[scale, p] = (total_norm(placed, p), tensor_norms(placed, p))
    return found


def test_norms_are_those_of_one_process_in_float64() -> None:
    by_rank = run_ranks(4, measured)
    for (scale, p), (total, each) in by_rank[0].items():
        exact = [tensor.double() for tensor in whole_tensors(scale)]
        wanted = torch.stack([torch.linalg.vector_norm(tensor, p) for tensor in exact])
        norm = torch.linalg.vector_norm(torch.cat([tensor.reshape(-1) for tensor in exact]), p)
        torch.testing.assert_close(total.double(), norm, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(each.double(), wanted, rtol=1e-6, atol=0.0)
        assert type(total) is Tensor
        assert total.dtype == torch.float32
        for other in by_rank[1:]:
            assert torch.equal(total, other[scale, p][0])
            assert torch.equal(each, other[scale, p][1])


def clipped(placed: list[Tensor], placed_weights: list[Tensor], clipper: Any) -> tuple[list[Tensor], float, float]:
    grads = {str(index): tensor.clone() for index, tensor in enumerate(placed)}
    weights = {str(index): nn.Parameter(tensor) for index, tensor in enumerate(placed_weights)}
    with torch.no_grad():
        done = clipper.clip_(grads, weights, total_norm, {})
    return [full(grad) for grad in grads.values()], float(done.total_norm), float(done.clip_coef)


def clipped_by_all() -> list[tuple[list[Tensor], float, float]]:
    over = meshes()
    placed, weights = laid_out(over, whole_tensors(1.0)), laid_out(over, whole_tensors(0.7, seed=1))
    return [clipped(placed, weights, clipper) for clipper in CLIPPERS]


def test_clippers_do_to_shards_what_they_do_to_whole_tensors() -> None:
    """AGC too, whose units may be spread over ranks."""
    by_rank = run_ranks(4, clipped_by_all)
    for index, clipper in enumerate(CLIPPERS):
        grads, norm, factor = clipped(whole_tensors(1.0), whole_tensors(0.7, seed=1), clipper)
        assert factor < 1.0
        for found in by_rank:
            assert found[index][1] == pytest.approx(norm, rel=1e-6)
            assert found[index][2] == pytest.approx(factor, rel=1e-6)
            for one, other in zip(found[index][0], grads, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-6, atol=0.0, msg=repr(clipper))


def batch(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return 20 * torch.randn(3, 20, generator=generator), torch.randint(0, 3, (3,), generator=generator)


def steps_under_hsdp() -> dict[str, Any]:
    found = {}
    for clipper in (tg.clip.GlobalNorm(0.1), tg.clip.AGC(clip_factor=0.05)):
        model = wrap(small_model(), "hsdp")
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=1.0), tg.Plan(clip=clipper))
        for window in pipe.windows([batch(torch.distributed.get_rank())]):
            for inputs, labels in window:
                pipe.backward(F.cross_entropy(model(inputs), labels))
            record = pipe.step()
        found[clipper.card.id] = (record.grad_norm, record.clip_coef, [full(p) for p in model.parameters()])
    return found


def test_a_step_under_hsdp_is_that_of_one_process_in_float64() -> None:
    by_rank = run_ranks(4, steps_under_hsdp)
    for clipper in (tg.clip.GlobalNorm(0.1), tg.clip.AGC(clip_factor=0.05)):
        model = small_model().double()
        batches = [batch(rank) for rank in range(4)]
        inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        F.cross_entropy(model(inputs.double()), labels).backward()
        parameters = dict(model.named_parameters())
        grads = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
        with torch.no_grad():
            done = clipper.clip_(grads, parameters, total_norm, {})
            wanted = [parameter - grads[name] for name, parameter in parameters.items()]
        assert float(done.clip_coef) < 1.0
        for found in by_rank:
            norm, factor, weights = found[clipper.card.id]
            assert norm == pytest.approx(float(done.total_norm), rel=1e-6)
            assert factor == pytest.approx(float(done.clip_coef), rel=2e-6)
            for one, other in zip(weights, wanted, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)
