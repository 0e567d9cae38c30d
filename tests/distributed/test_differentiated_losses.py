"""Losses that differentiate on their way: a gradient penalty, a penalty on weights' gradients, MAML's inner step."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.waiting import patience

K, WORLD = 2, 2
CAST = tg.codecs.Cast("float32")
PLANS = {
    "by DDP": tg.Plan(tg.Accumulate(K), clip=tg.clip.GlobalNorm(1e9)),
    "after backward": tg.Plan(tg.Accumulate(K), compress=tg.Compress(CAST)),
    "during backward": tg.Plan(tg.Accumulate(K), compress=tg.Compress(CAST, overlap="backward")),
}


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 1))


def penalty_on_inputs(model, inputs):
    inputs = inputs.clone().requires_grad_(True)
    out = model(inputs)
    (grad,) = torch.autograd.grad(out.sum(), inputs, create_graph=True)
    return out.mean() + (grad.norm(dim=1) - 1).square().mean()


def penalty_of_another_forward(model, inputs):
    others = (inputs * 0.5).requires_grad_(True)
    (grad,) = torch.autograd.grad(model(others).sum(), others, create_graph=True)
    return model(inputs).mean() + grad.square().sum(1).mean()


def penalty_on_weights(model, inputs):
    loss = model(inputs).square().mean()
    grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return loss + 0.1 * sum(grad.square().sum() for grad in grads)


def norm_for_a_log(model, inputs):
    loss = model(inputs).square().mean()
    torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return loss


def maml(model, inputs):
    inner = getattr(model, "module", model)
    weights = dict(inner.named_parameters())
    loss = (functional_call(inner, weights, (inputs,)) - 1).square().mean()
    grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
    fast = {name: weight - 0.1 * grad for (name, weight), grad in zip(weights.items(), grads, strict=True)}
    return (functional_call(inner, fast, (inputs,)) - 1).square().mean()


LOSSES = (penalty_on_inputs, penalty_of_another_forward, penalty_on_weights, norm_for_a_log)


def batches(rank):
    return torch.randn(K, 4, 6, generator=torch.Generator().manual_seed(rank))


def error_of(loss_of, plan, wrap=DistributedDataParallel, **given):
    model, seen = wrap(net()), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *args: seen.extend(p.grad.clone() for p in model.parameters()))
    pipe = tg.attach(model, optimizer, PLANS[plan], **given)
    for window in pipe.windows(batches(dist.get_rank())):
        for inputs in window:
            pipe.backward(loss_of(model, inputs))
        pipe.step()
    target = net().double()
    everyones = torch.cat([batches(rank) for rank in range(WORLD)]).double()
    torch.stack([loss_of(target, inputs) for inputs in everyones]).mean().backward()
    found = torch.cat([grad.flatten() for grad in seen]).double()
    wanted = torch.cat([parameter.grad.flatten() for parameter in target.parameters()])
    return float((found - wanted).norm() / wanted.norm())


def all_losses(plan):
    found = {loss_of.__name__: error_of(loss_of, plan) for loss_of in LOSSES}
    if plan == "after backward":
        ranks = tg.collectives.TorchCollective()
        found["maml"] = error_of(maml, plan)
        found["maml of a plain module"] = error_of(maml, "by DDP", wrap=lambda model: model, collective=ranks)
    else:
        with pytest.raises(tg.UsageError):
            error_of(maml, plan)
    return found


@pytest.mark.filterwarnings("ignore:Grad strides do not match")
@pytest.mark.parametrize("plan", PLANS)
def test_under_ddp_they_are_right(plan):
    for found in run_ranks(WORLD, all_losses, plan, timeout_seconds=patience(30)):
        assert max(found.values()) < 1e-6, found


def sharded(model):
    fully_shard(model[2])
    return fully_shard(model)


def refused(plan):
    for loss_of in (penalty_on_inputs, penalty_of_another_forward):
        with pytest.raises(tg.UnsupportedError, match=r"torch\.autograd\.grad does for a gradient penalty"):
            error_of(loss_of, plan, wrap=sharded)


@pytest.mark.parametrize("plan", ["by DDP", "after backward"])
def test_under_fsdp2_they_are_refused_by_name(plan):
    run_ranks(WORLD, refused, plan, timeout_seconds=patience(30))
