"""Z1, Z2, Z3: torch's compressing DDP hooks on gloo, with more than one bucket."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    batched_powerSGD_hook,
    powerSGD_hook,
)
from torch.distributed.algorithms.ddp_comm_hooks.quantization_hooks import (
    quantization_perchannel_hook,
    quantization_pertensor_hook,
)
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from field.gradients import Recorder, relative_error
from support.ranks import run_ranks
from tightgrad_lab.experiments.fragile import outcomes

RANKS = 2
STEPS = 8
WIDTH, DEPTH = 256, 6
BUCKET_MB = 0.3  # one layer each
SECONDS = 8.0  # the same steps without a hook take less than one

HOOKS = {
    "powerSGD": powerSGD_hook,
    "batched_powerSGD": batched_powerSGD_hook,
    "quantization_pertensor": quantization_pertensor_hook,
    "quantization_perchannel": quantization_perchannel_hook,
}


def model() -> DistributedDataParallel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])
    return DistributedDataParallel(layers, bucket_cap_mb=BUCKET_MB)


def batch_of(step: int, rank: int) -> torch.Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * step + rank))


def with_hook(name: str) -> str:
    net = model()
    state = PowerSGDState(None, start_powerSGD_iter=2) if "powerSGD" in name else None
    net.register_comm_hook(state, HOOKS[name])
    for step in range(STEPS):
        net.zero_grad()
        net(batch_of(step, dist.get_rank())).square().mean().backward()
    return "finished"


def with_tightgrad(compress: tg.Compress):
    """The gradients of all steps, and the exact ones, in float64 and without a wrapper."""
    net = model()
    optimizer = Recorder(net)
    pipe = tg.attach(net, optimizer, tg.Plan(compress=compress))
    exact = []
    for window in pipe.windows([batch_of(step, dist.get_rank()) for step in range(STEPS)]):
        for batch in window:
            pipe.backward(net(batch).square().mean())
        pipe.step()
    alone = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]).double()
    alone.load_state_dict(net.module.state_dict())
    for step in range(STEPS):
        alone.zero_grad()
        (sum(alone(batch_of(step, rank).double()).square().mean() for rank in range(RANKS)) / RANKS).backward()
        exact.append(torch.cat([p.grad.flatten() for p in alone.parameters()]))
    return optimizer.gradients, exact


def errors_of(compress: tg.Compress) -> list[float]:
    first, second = run_ranks(RANKS, with_tightgrad, compress)
    gradients, exact = first
    for mine, theirs in zip(gradients, second[0], strict=True):
        assert torch.equal(mine, theirs), "ranks differ"
    return [relative_error(mine, true) for mine, true in zip(gradients, exact, strict=True)]


def broken(results: list[str]) -> bool:
    return "finished" not in results


@pytest.mark.parametrize("name", ["powerSGD", "batched_powerSGD"])
def test_z1_z2_powersgd(name, field_row):
    """Low rank, over several buckets: the gradients sum up over time to the exact ones, with what is left behind."""
    compress = tg.Compress(None, tg.reducers.PowerSGD(4), tg.ErrorFeedback())
    errors = errors_of(compress)
    assert len(errors) == STEPS
    assert max(errors) < 1.0
    peer = outcomes(RANKS, with_hook, name, seconds=SECONDS)
    field_row(
        "Z1 powerSGD_hook on gloo, several buckets" if name == "powerSGD" else "Z2 batched_powerSGD_hook",
        "torch",
        f"{' / '.join(sorted(set(peer)))}",
        f"{STEPS} steps, ranks bitwise equal",
        peer_is_wrong=broken(peer),
    )


@pytest.mark.parametrize("name", ["quantization_pertensor", "quantization_perchannel"])
def test_z3_int8(name, field_row):
    errors = errors_of(tg.Compress(tg.codecs.IntBlock(8)))
    assert max(errors) < 0.02
    peer = outcomes(RANKS, with_hook, name, seconds=SECONDS)
    field_row(
        f"Z3 {name}_hook on gloo",
        "torch",
        f"{' / '.join(sorted(set(peer)))}",
        f"8 bits: error {max(errors):.4f} at most",
        peer_is_wrong=broken(peer),
    )


def refused_on_the_cpu() -> str:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    try:
        model().register_comm_hook(None, bf16_compress_hook)
    except Exception as error:
        return type(error).__name__
    return "registered"


def test_z13_bfloat16_on_the_cpu(field_row):
    errors = errors_of(tg.Compress(tg.codecs.Cast("bfloat16")))
    assert max(errors) < 2**-7
    peer = run_ranks(1, refused_on_the_cpu)[0]
    field_row(
        "Z13 bf16_compress_hook on the CPU",
        "torch",
        peer,
        f"Cast('bfloat16'): error {max(errors):.4f} at most",
        peer_is_wrong=peer != "registered",
    )
