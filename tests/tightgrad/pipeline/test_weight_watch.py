"""Weights that change in the middle of a window are told; what may change them is not."""

import warnings
import weakref

import pytest
import torch
from torch import nn

import tightgrad as tg

K = 3


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def train(model, between=lambda model, number: None, *, plan=None, before_step=lambda model: None, inputs=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, plan or tg.Plan(accumulate=tg.Accumulate(K)))
    for window in pipe.windows(inputs or [torch.ones(4, 6)] * (2 * K)):
        for number, batch in enumerate(window):
            pipe.backward(model(batch).square().mean())
            between(model, number)
        before_step(model)
        pipe.step()


@torch.no_grad()
def scale(model, number=0):
    if number == 0:
        model[0].weight.mul_(0.9)


def other_step(model, number):
    torch.optim.SGD([model[2].bias], lr=0.1).step()


def loaded(model, number):
    if number == 1:
        model.load_state_dict(net().state_dict())


@pytest.mark.parametrize(
    ("between", "named"), [(scale, "'0.weight'"), (other_step, "'2.bias'"), (loaded, "'0.weight', '0.bias'")]
)
def test_a_write_between_two_backwards_is_told_once(between, named):
    with pytest.warns(tg.TightGradWarning, match=f"between two backwards of one window: {named}") as told:
        train(net(), between)
    assert len(told) == 1


@pytest.mark.parametrize("plan", [tg.Plan(), tg.Plan(clip=tg.clip.GlobalNorm(1.0))], ids=["empty", "one batch"])
def test_one_micro_batch_has_no_between(plan):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net(), scale, plan=plan)


def test_writes_before_the_step_and_between_windows_are_the_loops_own():
    """Weight decay by hand stands between the last backward and the step."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net(), before_step=scale)


def test_an_embedding_that_keeps_its_norm_is_no_write():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 6, max_norm=0.5), nn.Linear(6, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, inputs=[torch.arange(10)] * (2 * K))


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_parametrized_weights_are_no_writes(kind):
    model = net()
    getattr(nn.utils.parametrizations, kind)(model[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model)


@torch.no_grad()
def evaluated_with_others(model, number):
    """As with averaged weights: swapped in, and put back bitwise."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value * 1.1 for name, value in own.items()})
    model(torch.ones(1, 6))
    model.load_state_dict(own)


def test_weights_that_were_put_back_are_said_to_be_harmless():
    swapped, plain = net(), net()
    with pytest.warns(tg.TightGradWarning, match=r"put back as it was .* the sum is right") as told:
        train(swapped, evaluated_with_others)
    assert len(told) == 1
    train(plain)
    assert all(torch.equal(a, b) for a, b in zip(swapped.parameters(), plain.parameters(), strict=True))


def data_write(model, number):
    if number == 0:
        model[0].weight.data.mul_(0.9)


def swapped_pointer(model, number):
    if number == 1:
        model[2].bias.data = model[2].bias.data + 1


def fused_step(model, number):
    torch.optim.AdamW([model[2].bias], lr=0.1, fused=True).step()


@pytest.mark.parametrize(
    ("between", "name"), [(data_write, "'0.weight'"), (swapped_pointer, "'2.bias'"), (fused_step, "'2.bias'")]
)
def test_what_torch_does_not_count_is_told_in_the_first_window(between, name):
    with pytest.warns(tg.TightGradWarning, match=f"between two backwards of one window: {name}") as told:
        train(net(), between)
    assert len(told) == 1


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("plan", [None, tg.Plan(clip=tg.clip.GlobalNorm(1.0))], ids=["three", "one"])
def test_another_optimizer_that_steps_before_the_step_is_told_once(plan, fused):
    model = net()
    other = torch.optim.SGD([model[2].bias], lr=0.1, fused=fused)
    with pytest.warns(tg.TightGradWarning, match=r"middle of a window, SGD over '2.bias'") as told:
        train(model, before_step=lambda model: other.step(), plan=plan)
    assert len(told) == 1


def of_another_model(model):
    stranger = nn.Linear(2, 1)
    stranger(torch.ones(1, 2)).sum().backward()
    torch.optim.SGD(stranger.parameters(), lr=0.1).step()


def without_gradients(model):
    frozen = nn.Parameter(torch.ones(2))
    torch.optim.SGD([frozen], lr=0.1).step()


@pytest.mark.parametrize("before_step", [of_another_model, without_gradients])
def test_optimizers_of_other_parameters_are_left_alone(before_step):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(net(), before_step=before_step)
        train(net(), between=lambda model, number: before_step(model))


def test_steps_between_windows_are_the_loops_own():
    model = net()
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model)
        model(torch.ones(1, 6)).sum().backward()
        other.step()


def test_what_an_optimizer_has_given_up_is_not_kept_alive():
    """Moments that are replaced or offloaded between two steps would stay in memory for one more window."""
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(K)))
    for window in pipe.windows([torch.ones(4, 6)] * K):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        pipe.step()
    old = [weakref.ref(state["exp_avg"]) for state in optimizer.state.values()]
    optimizer.state = type(optimizer.state)(dict)
    assert len(old) == 4
    assert [one() for one in old] == [None] * 4
