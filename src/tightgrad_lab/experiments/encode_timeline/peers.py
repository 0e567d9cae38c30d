"""What compressing hooks do when they are run: torch's own, Accelerate's way to them, and TightGrad.

Bodies of `fragile.outcomes` say "yes", or what went wrong. On the CPU over gloo, with several buckets.
"""

import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook, quantization_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg

WIDTH, DEPTH = 128, 6
BUCKET_MB = 0.1
STEPS = 6
YES, NO = "yes", "no"
HOOKS: dict[str, Callable[..., Any]] = {
    "fp16_compress_hook": default_hooks.fp16_compress_hook,
    "bf16_compress_hook": default_hooks.bf16_compress_hook,
    "powerSGD_hook": powerSGD_hook.powerSGD_hook,
    "batched_powerSGD_hook": powerSGD_hook.batched_powerSGD_hook,
    "quantization_pertensor_hook": quantization_hooks.quantization_pertensor_hook,
    "quantization_perchannel_hook": quantization_hooks.quantization_perchannel_hook,
}


def net() -> nn.Sequential:
    """A stack of layers, the same on every rank."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])


def inputs(first: int, last: int) -> Iterator[Tensor]:
    """This rank's batches."""
    for step in range(first, last):
        yield torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))


def state_of(hook: str) -> Any:
    """What the hook wants to be registered with."""
    if "powerSGD" not in hook:
        return None
    return powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)


def under_ddp(hook: str) -> str:
    """Train some steps with one of torch's hooks."""
    model = DistributedDataParallel(net(), bucket_cap_mb=BUCKET_MB)
    model.register_comm_hook(state_of(hook), HOOKS[hook])
    return _trained(model)


def under_accelerate(kind: str) -> str:
    """The same, registered by Accelerate; PowerSGD compresses from the third step on, as above."""
    utils = importlib.import_module("accelerate.utils")
    options = {"matrix_approximation_rank": 1, "start_powerSGD_iter": 2} if kind == "power_sgd" else {}
    settings = utils.DistributedDataParallelKwargs(
        comm_hook=utils.DDPCommunicationHookType(kind), comm_state_option=options
    )
    model = DistributedDataParallel(net(), bucket_cap_mb=BUCKET_MB)
    settings.register_comm_hook(model)
    return _trained(model)


def _trained(model: nn.Module) -> str:
    for batch in inputs(0, STEPS):
        model.zero_grad()
        model(batch).square().mean().backward()
        if not all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters()):
            return "not finite"
    return YES


def _under_fsdp2(hook: str) -> str:
    """Whether a module under `fully_shard` takes the hook at all."""
    model: Any = fully_shard(net(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    model.register_comm_hook(state_of(hook), HOOKS[hook])
    return _trained(model)


def under_fsdp2(hooks: tuple[str, ...]) -> str:
    """What each hook does on a sharded model: JSON, by name."""
    return each({hook: partial(_under_fsdp2, hook) for hook in hooks})


def each(bodies: Mapping[str, Callable[[], str]]) -> str:
    """What each returns, or the name of its error: JSON. Only for what neither hangs nor dies."""
    found = {}
    for name, body in bodies.items():
        try:
            found[name] = body()
        except Exception as error:
            found[name] = type(error).__name__
    return json.dumps(found)


def feeds_back(hook: str) -> str:
    """Whether the hook's state holds a residual after some steps: on one rank, where PowerSGD does not hang."""
    state = state_of(hook)
    model = DistributedDataParallel(net(), bucket_cap_mb=100.0)
    model.register_comm_hook(state, HOOKS[hook])
    _trained(model)
    residuals = getattr(state, "error_dict", {})
    return YES if any(float(residual.norm()) > 0 for residual in residuals.values()) else NO


def resumes(hook: str) -> str:
    """Save the hook's state, load it into a new run, take a step: on one rank."""
    state = state_of(hook)
    model = DistributedDataParallel(net(), bucket_cap_mb=BUCKET_MB)
    model.register_comm_hook(state, HOOKS[hook])
    _trained(model)
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    again = DistributedDataParallel(net(), bucket_cap_mb=BUCKET_MB)
    again.register_comm_hook(torch.load(saved, weights_only=False), HOOKS[hook])
    return _trained(again)


def tightgrad(folder: str) -> str:
    """Everything that a plan does: JSON, by column."""
    return each(
        {
            "ddp": _tightgrad_under_ddp,
            "fsdp2": _tightgrad_under_fsdp2,
            "feedback": _tightgrad_feeds_back,
            "resume": partial(_tightgrad_resumes, folder),
        }
    )


def _plan() -> tg.Plan:
    return tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(4), feedback=tg.ErrorFeedback()))


def _run(model: nn.Module, pipe: tg.GradientPipeline, first: int, last: int) -> list[tg.StepRecord]:
    records = []
    for window in pipe.windows(inputs(first, last)):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        records.append(pipe.step())
    return records


def _attached(model: nn.Module, plan: tg.Plan) -> tg.GradientPipeline:
    return tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)


def _tightgrad_under_ddp() -> str:
    """4-bit two-shot with error feedback; ranks must end bitwise equal."""
    model = DistributedDataParallel(net(), bucket_cap_mb=BUCKET_MB)
    _run(model, _attached(model, _plan()), 0, STEPS)
    mine = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    first = mine.clone()
    dist.broadcast(first, 0)
    return YES if torch.equal(mine, first) else "ranks differ"


def _tightgrad_under_fsdp2() -> str:
    """The same plan on a sharded model."""
    model: Any = fully_shard(net(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    _run(model, _attached(model, _plan()), 0, STEPS)
    return YES


def _tightgrad_feeds_back() -> str:
    """Whether a residual is held."""
    model = DistributedDataParallel(net(), bucket_cap_mb=BUCKET_MB)
    record = _run(model, _attached(model, _plan()), 0, STEPS)[-1]
    return YES if record.residual_norm else NO


def _tightgrad_resumes(folder: str) -> str:
    """Stopped half-way and resumed with another bucket size, against a run that was not stopped: bitwise."""
    straight = DistributedDataParallel(net(), bucket_cap_mb=BUCKET_MB)
    _run(straight, _attached(straight, _plan()), 0, 2 * STEPS)
    stopped = DistributedDataParallel(net(), bucket_cap_mb=BUCKET_MB)
    pipe = _attached(stopped, _plan())
    _run(stopped, pipe, 0, STEPS)
    again = DistributedDataParallel(net(), bucket_cap_mb=10 * BUCKET_MB)
    again.load_state_dict(stopped.state_dict())
    other = _attached(again, _plan())
    pipe.save(folder)
    other.load(folder)
    _run(again, other, STEPS, 2 * STEPS)
    same = all(torch.equal(a, b) for a, b in zip(straight.parameters(), again.parameters(), strict=True))
    return YES if same else "another result"
