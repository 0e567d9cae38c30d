"""From a window's beginning to its step nobody but the pipeline changes `.grad`."""

import copy

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.in_turn import in_turn
from tightgrad.pipeline.premises.gradient_watch import GradientWatch, foreign_change
from tightgrad.scaling.noise_scale import NoiseScale

K = 3
PLANS = {
    "accumulate": tg.Plan(accumulate=tg.Accumulate(K)),
    "one batch at a time": tg.Plan(accumulate=tg.Accumulate(K, fetch="batch")),
    "clip": tg.Plan(accumulate=tg.Accumulate(K), clip=tg.clip.GlobalNorm(1.0)),
    "compress": tg.Plan(
        accumulate=tg.Accumulate(K), compress=tg.Compress(tg.codecs.IntBlock(8), feedback=tg.ErrorFeedback())
    ),
    "loss scale": tg.Plan(accumulate=tg.Accumulate(K), loss_scale=tg.LossScale()),
    "noise scale": tg.Plan(accumulate=tg.Accumulate(K), noise_scale=NoiseScale()),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def batches(count=K):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2 + index % 2, 4, generator=generator) for index in range(count)]


def loss_of(model, batch):
    return model(batch).square().mean()


def zeroed(model, optimizer, batch):
    optimizer.zero_grad()


def filled_with_zeros(model, optimizer, batch):
    optimizer.zero_grad(set_to_none=False)


def of_one_layer(model, optimizer, batch):
    model[2].zero_grad()


def clipped_by_torch(model, optimizer, batch):
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


def clipped_by_us(model, optimizer, batch):
    tg.clip_grad_norm_(model.parameters(), 1e-3)


def clipped_by_value(model, optimizer, batch):
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)


def another_backward(model, optimizer, batch):
    loss_of(model, batch).backward()


def edited(model, optimizer, batch):
    with torch.no_grad():
        model[0].weight.grad[0] *= 2.0


def replaced(model, optimizer, batch):
    model[0].weight.grad = model[0].weight.grad.clone()


def zeroed_and_run_again(model, optimizer, batch):
    optimizer.zero_grad()
    loss_of(model, batch).backward()


CHANGES = {
    zeroed: "'0.weight'.*and 1 more.*cleared.*zero_grad.. was left in the loop",
    filled_with_zeros: "written in place.*set_to_none=False",
    of_one_layer: "'2.weight', '2.bias' .cleared",
    clipped_by_torch: "written in place.*clip_grad_norm_.*GlobalNorm",
    clipped_by_us: "written in place.*clip_grad_norm_.*GlobalNorm",
    clipped_by_value: "written in place.*clip_grad_value_.*tg.clip.Value",
    another_backward: "written in place.*a backward other than pipe.backward",
    edited: "'0.weight' .written in place.*before_clip=edit.*register_hook gets each micro-batch's.*fixed factor",
    replaced: "'0.weight' .replaced by another tensor",
    zeroed_and_run_again: "replaced by another tensor",
}


def disturbed(pipe, model, optimizer, window, change, after):
    for index, batch in enumerate(window, start=1):
        pipe.backward(loss_of(model, batch))
        if index == after:
            change(model, optimizer, batch)
    pipe.step()


@pytest.mark.parametrize(("plan", "change", "after"), in_turn(PLANS.values(), CHANGES, [1, K]))
def test_a_change_from_outside_is_an_error_before_the_weights_move(plan, change, after):
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, plan)
    for window in pipe.windows(batches()):
        with pytest.raises(tg.UsageError, match=CHANGES[change]):
            disturbed(pipe, model, optimizer, window, change, after)
        with pytest.raises(tg.UsageError, match="from outside"):
            pipe.state_dict()
        pipe.abandon()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    for window in pipe.windows(batches()):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        assert not pipe.step().skipped


@pytest.mark.parametrize("change", [another_backward, zeroed_and_run_again])
def test_a_gradient_before_the_first_backward_is_an_error(change):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, PLANS["accumulate"])
    for window in pipe.windows(batches()):
        for batch in window:
            change(model, optimizer, batch)
            with pytest.raises(tg.UsageError, match=r"'0.weight'.*\(new\).*a backward other than"):
                pipe.backward(loss_of(model, batch))
            break
        pipe.abandon()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gradients_lie_in_a_buffer_in_between(dtype):
    """`.grad` is None there: clearing it is harmless, and what another backward leaves is a new gradient."""
    model = network().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pipe = tg.attach(model, optimizer, PLANS["accumulate"])
    inputs = [batch.to(dtype) for batch in batches()]
    norms = []
    for change in (None, zeroed):
        for window in pipe.windows(inputs):
            for batch in window:
                pipe.backward(loss_of(model, batch))
                if change is not None:
                    change(model, optimizer, batch)
            norms.append(pipe.step().grad_norm)
    assert norms[0] == norms[1]
    for window in pipe.windows(inputs):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        another_backward(model, optimizer, batch)
        with pytest.raises(tg.UsageError, match=r"\(new\)"):
            pipe.step()
        pipe.abandon()


def test_with_retries_too():
    model = network()
    pipe = tg.attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(accumulate=tg.Accumulate(K, on_oom="split"))
    )

    def clipping(batch):
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)
        return loss_of(model, batch)

    for window in pipe.windows(batches()):
        with pytest.raises(tg.UsageError, match="from outside"):
            pipe.run(window, clipping)
        pipe.abandon()


def clamp_its_gradient(parameter):
    parameter.grad.clamp_(-1.0, 1.0)


def harmless(model, optimizer, batch):
    """What people do in mid-window and may: measure, read, freeze for a while, ask for gradients elsewhere."""
    nn.utils.get_total_norm([p.grad for p in model.parameters()])
    tg.clip_grad_norm_(model.parameters(), float("inf"))
    [p.grad.norm().item() for p in model.parameters()]
    torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
    model.requires_grad_(False)
    loss_of(model, batch.clone().requires_grad_()).backward()
    model.requires_grad_(True)
    with torch.no_grad():
        loss_of(model, batch)
    copy.deepcopy(model)


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
def test_what_changes_no_gradient_is_no_error(plan):
    records = []
    for meanwhile in (lambda *args: None, harmless):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model[0].weight.register_hook(lambda grad: grad * 2.0)
        model[2].bias.register_post_accumulate_grad_hook(clamp_its_gradient)
        pipe = tg.attach(model, optimizer, plan)
        for window in pipe.windows(batches(2 * K)):
            optimizer.zero_grad()
            for batch in window:
                pipe.backward(loss_of(model, batch))
                meanwhile(model, optimizer, batch)
            records.append(pipe.step().grad_norm)
            optimizer.zero_grad()
    assert records[:2] == records[2:]


def test_gradients_between_windows_are_cleared():
    """Another model's loss may have gone through this one meanwhile."""
    model = network()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), PLANS["accumulate"])
    norms = []
    loss_of(model, batches()[0]).backward()
    for window in (window for _ in range(2) for window in pipe.windows(batches())):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        norms.append(pipe.step().grad_norm)
        loss_of(model, batches()[0]).backward()
    assert norms[0] == norms[1]


def test_an_empty_plan_is_plain_pytorch():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pipe = tg.attach(model, optimizer, tg.Plan())
    for window in pipe.windows(batches(1)):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        clipped_by_torch(model, optimizer, batch)
        pipe.step()
    optimizer.step()


class Wrapper:
    """A wrapper that keeps one gradient, and may move it by itself."""

    counts_writes = True

    def __init__(self, moves_gradients):
        self.moves_gradients = moves_gradients
        self.grad = torch.ones(5)

    def gradients(self):
        return [("weight", self.grad), ("bias", None)]


def test_where_a_wrapper_moves_gradients_their_norms_are_compared():
    wrapper = Wrapper(True)
    watch = GradientWatch(wrapper)
    assert watch.changes() == {}
    watch.remember()
    wrapper.grad = wrapper.grad.clone()
    assert watch.changes() == {}
    wrapper.grad[0] = 2.0
    assert watch.changes() == {"replaced by another tensor": ["weight"]}
    wrapper.grad = torch.full((5,), float("nan"))
    watch.remember()
    wrapper.grad = wrapper.grad.clone()
    assert watch.changes() == {}
    wrapper.grad = None
    assert watch.changes() == {"cleared": ["weight"]}
    watch.forget()
    assert watch.changes() == {}


def test_what_torch_does_not_count_is_seen_in_the_first_window_by_its_norm():
    wrapper = Wrapper(False)
    watch = GradientWatch(wrapper)
    for sees in (True, False):
        watch.end_window()
        watch.remember()
        wrapper.grad.numpy()[0] += 3.0
        assert watch.changes() == ({"written in place": ["weight"]} if sees else {})
    wrapper.counts_writes = False
    watch.remember()
    wrapper.grad.data.mul_(2.0)
    assert watch.changes() == {"written in place": ["weight"]}


def test_a_name_is_said_once():
    error = foreign_change({"written in place": ["a", "a", "b", "c", "d", "e"]}, lambda: False)
    assert "'a', 'b', 'c' and 2 more" in str(error)
