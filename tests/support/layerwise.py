"""What LARS and LAMB are tested on: parameters, gradients, and a sharded model as the body of a process."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tightgrad.core.placement import local_part
from tightgrad.scaling import LAMB, LARS

SHAPES = ((5, 3), (7,), (1,), (2, 3, 2))
NUM_STEPS = 6
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"lars": LARS, "lamb": LAMB}

Gradients = list[list[Tensor | None]]


def make_parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """The last one is all zero, as a freshly made bias."""
    generator = torch.Generator().manual_seed(3)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES[:-1]]
    return [nn.Parameter(value.to(dtype)) for value in [*values, torch.zeros(SHAPES[-1])]]


def make_gradients(dtype: torch.dtype = torch.float32) -> Gradients:
    """By step and parameter: of several sizes, once missing, twice all zero."""
    generator = torch.Generator().manual_seed(4)
    steps: Gradients = []
    for step in range(NUM_STEPS):
        size = 10.0 ** (step % 3 - 1)
        values = [size * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
        steps.append([value.to(dtype) for value in values])
    steps[2][1] = None
    steps[0][0] = torch.zeros(SHAPES[0], dtype=dtype)
    steps[3][2] = torch.zeros(SHAPES[2], dtype=dtype)
    return steps


def train(optimizer: torch.optim.Optimizer, gradients: Gradients) -> list[Tensor]:
    """Apply the gradients; return copies of the parameters."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for row in gradients:
        for param, grad in zip(params, row, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()
    return [param.detach().clone() for param in params]


def make_model() -> nn.Module:
    """Sizes that two ranks cannot share evenly, and a bias of one element, of which one rank has nothing."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def fit(model: nn.Module, name: str, settings: dict[str, Any]) -> torch.optim.Optimizer:
    """Train with one group per kind of parameter; the output bias is left out of the adaptation."""
    *adapted, last = model.parameters()
    groups = [{"params": adapted}, {"params": [last], "layer_adaptation": "none", "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[name](groups, **settings)
    generator = torch.Generator().manual_seed(7)
    inputs, targets = torch.randn(8, 3, generator=generator), torch.randn(8, 1, generator=generator)
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
    return optimizer


def fit_sharded(mesh_shape: tuple[int, ...], runs: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """On this rank: the parameters after training, and whether they and the optimizer's state stayed sharded.

    All ranks see the same batch, so the mean over ranks is bitwise the single process's gradient.
    """
    names = ("replicate", "shard")[-len(mesh_shape) :]
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    results = []
    for name, settings in runs:
        model = fully_shard(make_model(), mesh=mesh)
        optimizer = fit(model, name, settings)
        shards = [
            (local_part(param).shape, local_part(value).shape)
            for param, state in optimizer.state.items()
            for key, value in state.items()
            if key != "step"
        ]
        results.append(
            {
                "params": [param.full_tensor().detach() for param in model.parameters()],
                "state_like_params": bool(shards) and all(shape == of_state for shape, of_state in shards),
                "local_numel": sum(local_part(param).numel() for param in model.parameters()),
            }
        )
    return results
