"""Norms and clippers on every placement, of both axes of a mesh, against the whole tensors on one process."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import tightgrad as tg
from support.placements import PUTS_UNEVEN_BACK, SHAPES, SUMMANDS, make_mesh, place, values, whole
from support.ranks import run_ranks
from tightgrad.clip.dtensor import zero_nonfinite_
from tightgrad.clip.norm import exact_norm, tensor_norms, total_norm
from tightgrad.core.protocols import Clipper

ALL = {**SHAPES, **SUMMANDS}
POWERS = (0.0, 0.5, 1.0, 2.0, 3.5, 7.0, math.inf)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
CLIPPERS: dict[str, Clipper] = {
    "global_norm": tg.clip.GlobalNorm(0.5),
    "infinity norm": tg.clip.GlobalNorm(0.5, norm_type=math.inf),
    "value": tg.clip.Value(0.3),
    "per_tensor_norm": tg.clip.PerTensorNorm(1.0),
    "block_rms": tg.clip.BlockRMS(0.5),
    "agc": tg.clip.AGC(0.3),
    "agc columns": tg.clip.AGC(0.3, unit_axis=1),
    "agc excluded": tg.clip.AGC(0.3, exclude=("*strided*",)),
    "adagc": tg.clip.AdaGC(warmup_steps=1),
    "autoclip": tg.clip.AutoClip(percentile=10.0),
    "zclip": tg.clip.ZClip(warmup_steps=1, max_norm=1.0),
    "chain": tg.clip.Chain((tg.clip.Value(0.3), tg.clip.GlobalNorm(0.5))),
    "by_name": tg.clip.ByName((("*strided*", tg.clip.GlobalNorm(0.5)),), default=tg.clip.PerTensorNorm(0.5)),
}


def reference(tensors: list[Tensor], p: float) -> float:
    entries = torch.cat([tensor.reshape(-1).to(torch.complex128).abs() for tensor in tensors])
    largest = entries.max()
    return float(largest * torch.linalg.vector_norm(entries / largest, p)) if p else float((entries != 0).sum())


def norms_rank() -> list[tuple[str, float, float]]:
    mesh, rows = make_mesh(), []
    for dtype in DTYPES:
        scales = (1.0, 1e200, 1e-200) if dtype in (torch.float64, torch.complex128) else (1.0, 1e30, 1e-30)
        for scale in scales:
            plain = values(ALL, dtype, seed=0, scale=scale)
            placed = {name: place(name, value, mesh) for name, value in plain.items()}
            if scale == 1.0:
                assert all(torch.allclose(whole(placed[name]), plain[name], rtol=1e-5, atol=0) for name in plain)
            for p in POWERS if scale == 1.0 else (0.5, 2.0, 3.5, math.inf) if scale < 1.0 else (1.0, 2.0, 7.0):
                title = f"{dtype} {scale} {p}"
                total = total_norm(list(placed.values()), p)
                rows.append((title, float(total), reference(list(plain.values()), p)))
                assert type(total) is Tensor
                each = tensor_norms(list(placed.values()), p).tolist()
                rows += [(f"{title} {n}", each[i], reference([plain[n]], p)) for i, n in enumerate(plain)]
    return rows


def test_norms() -> None:
    by_rank = run_ranks(4, norms_rank)
    assert all(rows == by_rank[0] for rows in by_rank)
    for title, ours, true in by_rank[0]:
        with torch.no_grad():
            in_float32 = float(torch.tensor(true, dtype=torch.float32))
        expected = true if "float64" in title or "complex128" in title else in_float32
        assert ours == pytest.approx(expected, rel=1e-6, abs=2.0**-149 if expected == in_float32 else 0.0), title


def clippers_rank(
    names: dict[torch.dtype, list[str]],
) -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor], float, float]]:
    mesh, found = make_mesh(), {}
    for dtype in names:
        weights = values(ALL, dtype, seed=1)
        plain_params = {name: nn.Parameter(weight) for name, weight in weights.items()}
        params = {n: nn.Parameter(place("replicated" if n in SUMMANDS else n, w, mesh)) for n, w in weights.items()}
        mesh_of_one = "sum on one mesh"  # a gradient's mesh is its parameter's
        params[mesh_of_one] = nn.Parameter(place("one mesh", weights[mesh_of_one], mesh))
        steps = [values(ALL, dtype, seed=10 + step, scale=3.0**step) for step in range(3)]
        for plain in steps:
            del plain[mesh_of_one]
        placed = [{n: place(n, value, mesh) for n, value in plain.items()} for plain in steps]  # which takes longest
        for name in names[dtype]:
            clipper = CLIPPERS[name]
            plain_state: Any = {}
            state: Any = {}
            for step in range(3) if clipper.slots else [2]:
                plain, grads = ({n: g.clone() for n, g in one[step].items()} for one in (steps, placed))
                theirs = clipper.clip_(plain, plain_params, exact_norm, plain_state)
                ours = clipper.clip_(grads, params, exact_norm, state)
                plain_state, state = dict(theirs.state), dict(ours.state)
            after = {n: whole(grad) for n, grad in grads.items()}
            found[f"{name} {dtype}"] = (after, plain, float(ours.clip_coef), float(theirs.clip_coef))
    return found


EVERY_OTHER = {torch.float32: [*CLIPPERS], torch.complex128: [*CLIPPERS][::2]}
COMPLEX = {torch.complex128: [*CLIPPERS]}


@pytest.mark.parametrize(
    "names", [pytest.param(EVERY_OTHER, id="quick"), pytest.param(COMPLEX, id="complex", marks=pytest.mark.slow)]
)
def test_clippers(names: dict[torch.dtype, list[str]]) -> None:
    by_rank = run_ranks(4, clippers_rank, names)
    for found in by_rank:
        for name, (ours, plain, coefficient, expected) in found.items():
            assert coefficient == pytest.approx(expected, rel=1e-5), name
            for tensor, grad in ours.items():
                assert torch.equal(grad, by_rank[0][name][0][tensor]), (name, tensor)
                torch.testing.assert_close(grad, plain[tensor], rtol=2e-5, atol=1e-7, msg=f"{name} {tensor}")


def functions_rank() -> dict[str, Any]:
    """On a model as torch's own parallelism leaves it."""
    mesh = make_mesh()
    torch.manual_seed(0)
    wide = 10 if PUTS_UNEVEN_BACK else 12
    model = nn.Sequential(nn.Linear(6, wide), nn.Tanh(), nn.Linear(wide, 3), nn.LayerNorm(3))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    model(torch.randn(4, 6)).square().sum().backward()
    parameters = list(model.parameters())
    true = torch.cat([whole(p.grad).double().flatten() for p in parameters])
    found: dict[str, Any] = {"placements": str([p.grad.placements for p in parameters])}
    for p in POWERS:
        ours = float(tg.get_total_norm([q.grad for q in parameters], p))
        found[f"norm {p}"] = (ours, reference([true], p))
    found["returned"] = (float(tg.clip_grad_norm_(parameters, 0.1)), float(true.norm()))
    after = torch.cat([whole(p.grad).double().flatten() for p in parameters])
    found["after"] = (float(after.norm()), 0.1)
    found["direction"] = (float(after @ true / after.norm() / true.norm()), 1.0)
    tg.clip_grad_value_(parameters, 0.01)
    clamped = torch.cat([whole(p.grad).double().flatten() for p in parameters])
    found["value"] = (float((clamped - after.clamp(-0.01, 0.01)).abs().max()) + 1.0, 1.0)
    return found


def test_functions_on_tensor_parallel_and_fsdp2() -> None:
    first, *others = run_ranks(4, functions_rank)
    assert "_StridedShard" in first["placements"]
    assert all(found == first for found in others)
    del first["placements"]
    for name, (ours, true) in first.items():
        assert ours == pytest.approx(true, rel=1e-6), name


class Ragged(Shard):
    """A placement that someone derives from torch's, with a meaning of its own."""


def edges_rank() -> dict[str, Any]:
    mesh, found = make_mesh(), {}
    for dtype in (torch.float32, torch.complex64):
        plain = values(ALL, dtype, seed=3)
        for value in plain.values():
            value.view(-1)[0] = math.nan
            value.view(-1)[-1] = complex(1.0, -math.inf) if dtype.is_complex else -math.inf
        placed = {name: place(name, value, mesh) for name, value in plain.items()}
        found[f"nan {dtype}"] = [bool(total_norm(list(placed.values()), p).isnan()) for p in (0.5, 1, 2, 3.5, math.inf)]
        zero_nonfinite_(placed.values())
        expected = {name: torch.where(value.isfinite(), value, 0) for name, value in plain.items()}
        found[f"zeroed {dtype}"] = {name: (whole(placed[name]), expected[name]) for name in plain}
    local, refused = torch.ones(2, 2), {}
    for name, lies in {
        "avg": [Partial("avg"), Replicate()],
        "max": [Replicate(), Partial("max")],
        "Ragged": [Ragged(0), Replicate()],
    }.items():
        tensor = DTensor.from_local(local.clone(), mesh, lies, run_check=False)
        for what in ("norm", "value", "agc", "zero", "each"):
            try:
                {
                    "norm": lambda t: tg.get_total_norm([t]),
                    "value": lambda t: tg.clip.Value(0.1).clip_({"w": t}, {}, exact_norm, {}),
                    "agc": lambda t: tg.clip.AGC().clip_({"w": t}, {"w": nn.Parameter(local)}, exact_norm, {}),
                    "zero": lambda t: zero_nonfinite_([t]),
                    "each": lambda t: tensor_norms([t]),
                }[what](tensor)
                refused[f"{name} {what}"] = ""
            except tg.UnsupportedError as error:
                refused[f"{name} {what}"] = str(error)
        assert torch.equal(tensor.to_local(), local)
    found["refused"] = refused
    return found


def test_nonfinite_entries_and_unknown_placements() -> None:
    for found in run_ranks(4, edges_rank):
        for dtype in (torch.float32, torch.complex64):
            assert all(found[f"nan {dtype}"])
            for name, (ours, expected) in found[f"zeroed {dtype}"].items():
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6, msg=name)
        for name, message in found["refused"].items():
            assert name.split()[0] in message, (name, message)
            assert "redistribute" in message
