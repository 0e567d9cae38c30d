"""A model that gets new parameters after attach, and hooks that come before the pipeline, are told."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import tightgrad as tg
from support.ranks import run_ranks
from support.training import batches, linear, train
from support.wrapping import ragged_batches, small_model, wrap

PLAN = tg.Plan(accumulate=tg.Accumulate(2), clip=tg.clip.GlobalNorm(1.0))
LATE = "trainable parameters that it had not at attach"


def attached(plan=PLAN):
    model = nn.Sequential(linear(), nn.ReLU())
    return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)


def replaced_layer(model):
    model[0] = linear(1)


def replaced_parameter(model):
    model[0].bias = nn.Parameter(torch.zeros(2))


def low_rank(model):
    model[0].weight.requires_grad_(False)
    model[0].register_parameter("lora_a", nn.Parameter(torch.zeros(2, 2)))


def added_layer(model):
    model.append(nn.Sequential(nn.Linear(2, 2)))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, weight):
        return weight * self.factor


def parametrized(model):
    parametrize.register_parametrization(model[0], "weight", Scale())


@pytest.mark.parametrize("change", [replaced_layer, replaced_parameter, low_rank, added_layer, parametrized])
def test_new_trainable_parameters_are_an_error_at_the_next_window(change):
    model, pipe = attached()
    train(pipe, model, batches(2))
    change(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(tg.UsageError, match=LATE):
        train(pipe, model, batches(2))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def frozen_layer(model):
    model.append(nn.Linear(2, 2).requires_grad_(False))


def without_parameters(model):
    model[1] = nn.Tanh()


def moved(model):
    model.append(nn.Identity())
    model[0], model[2] = model[2], model[0]


def tied(model):
    model[1] = nn.Module()
    model[1].weight = model[0].weight
    model[1].forward = lambda x: x


@pytest.mark.parametrize("change", [frozen_layer, without_parameters, moved, tied])
def test_what_brings_no_new_parameter_is_not(change):
    model, pipe = attached()
    train(pipe, model, batches(2))
    change(model)
    (record,) = train(pipe, model, batches(2))
    assert not record.skipped


def with_new_head(wrapper, late):
    model = wrap(small_model(), wrapper)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), PLAN)
    for window in pipe.windows(ragged_batches(0)[:2]):  # a forward leaves other tensors registered under fully_shard
        for inputs, target in window:
            pipe.backward(nn.functional.cross_entropy(model(inputs), target))
        pipe.step()
    with torch.no_grad():
        model(ragged_batches(0)[0][0])
    if late:
        model.register_module("late", nn.Linear(2, 2))
    try:
        next(iter(pipe.windows(ragged_batches(0))))
    except tg.UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_under_a_wrapper(wrapper):
    assert run_ranks(2, with_new_head, wrapper, False) == [None, None]
    for said in run_ranks(2, with_new_head, wrapper, True):
        # what is put on DDP's own module is outside of the model that it wraps
        assert said is None if wrapper == "ddp" else LATE in said


def steps_and_clears(parameter):
    with torch.no_grad():
        parameter -= 0.1 * parameter.grad
    parameter.grad = None


def said_of_hooks(hook):
    model, pipe = attached()
    model[0].bias.register_post_accumulate_grad_hook(hook)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=tg.TightGradWarning)
        train(pipe, model, batches(4))
    return [str(one.message) for one in caught if "post-accumulate-grad hook" in str(one.message)]


def test_a_hook_that_takes_gradients_is_warned_of_once():
    (said,) = said_of_hooks(steps_and_clears)
    assert "'0.bias' had no gradient after backward, where a post-accumulate-grad hook (steps_and_clears)" in said


def limits(parameter):
    parameter.grad.clamp_(-1, 1)


@pytest.mark.parametrize("hook", [lambda parameter: None, limits])
def test_a_hook_that_looks_or_edits_is_not(hook):
    assert said_of_hooks(hook) == []
