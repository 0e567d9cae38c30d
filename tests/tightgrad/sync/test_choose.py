"""Attach: parameters by one name under any wrapper, and refusals that say what to do instead."""

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.training import batches, linear, train
from tightgrad.sync.choose import plain_adapter

PLAN = tg.Plan(clip=tg.clip.GlobalNorm(1.0))


def sgd(*modules):
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr=0.1)


def test_tied_parameters_count_once_and_frozen_ones_not():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    assert list(plain_adapter(model).parameters) == ["0.weight", "0.bias", "1.bias", "2.weight"]


def test_a_compiled_module_has_the_names_of_the_plain_one():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    inner = torch.compile(model, backend="eager")
    nested = nn.ModuleDict({"body": inner})
    assert list(plain_adapter(inner).parameters) == list(plain_adapter(model).parameters)
    assert list(plain_adapter(nested).parameters) == ["body.0.weight", "body.0.bias"]


def test_data_parallel_is_refused():
    with pytest.raises(tg.UnsupportedError, match=r"DataParallel is not supported; use .*DistributedDataParallel"):
        tg.attach(nn.DataParallel(linear()), sgd(linear()), PLAN)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_a_seed_is_a_natural_number(seed):
    with pytest.raises(tg.ConfigError, match="seed="):
        tg.attach(linear(), sgd(linear()), PLAN, seed=seed)


def test_a_parameter_unfrozen_after_attach_is_an_error():
    """It would be trained on gradients that nobody clipped or summed over ranks."""
    model = linear()
    model.bias.requires_grad_(False)
    pipe = tg.attach(model, sgd(model), PLAN)
    train(pipe, model, batches(1))
    model.bias.requires_grad_(True)
    with pytest.raises(tg.UsageError, match=r"left out 'bias'.*Unfreeze before attach"):
        train(pipe, model, batches(1))


def test_an_optimizer_with_other_parameters_is_an_error():
    model, other = linear(), nn.Linear(5, 1, bias=False)
    for plan in (PLAN, tg.Plan()):
        with pytest.raises(tg.UsageError, match=r"shapes \(1, 5\).*attach a module that has them all"):
            tg.attach(model, sgd(model, other), plan)


def test_a_parameter_frozen_after_attach_is_left_alone():
    model = linear()
    pipe = tg.attach(model, sgd(model), PLAN)
    model.bias.requires_grad_(False)
    before = model.bias.detach().clone()
    train(pipe, model, batches(3))
    assert torch.equal(model.bias, before)


def test_the_empty_plan_installs_nothing():
    model = linear()
    hooks = (model._forward_hooks, model._forward_pre_hooks, model._backward_hooks)
    optimizer = sgd(model)
    step = optimizer.step
    pipe = tg.attach(model, optimizer, tg.Plan())
    assert not any(hooks)
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
    assert optimizer.step == step
    (record,) = train(pipe, model, batches(1))
    assert (record.grad_norm, record.clip_coef, record.wire_bytes, record.residual_norm) == (None,) * 4
    assert pipe.adapter.collective.traffic.nbytes == 0
