"""A micro-batch that one rank takes out of its window, under wrappers that sum over ranks by themselves."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import tightgrad as tg
from support.in_turn import in_turn
from support.ranks import run_ranks
from support.wrapping import full, ragged_batches, small_model, wrap

K, WORLD = 3, 2
LEFT_OUT = {"in the middle": {0: [1]}, "last": {1: [K - 1]}, "all of one rank": {0: [0, 1, 2], 1: [0]}}
PLANS = {
    "last": {"accumulate": tg.Accumulate(K, allow_skip=True)},
    "every": {"accumulate": tg.Accumulate(K, sync="every", allow_skip=True)},
    "compress": {
        "accumulate": tg.Accumulate(K, allow_skip=True),
        "compress": tg.Compress(tg.codecs.Cast("float32"), feedback=tg.ErrorFeedback()),
    },
    "backward": {
        "accumulate": tg.Accumulate(K, allow_skip=True),
        "compress": tg.Compress(tg.codecs.Cast("float32"), overlap="backward"),
    },
}


def train(wrapper, plan, left_out, gives_loss):
    model, seen = wrap(small_model(), wrapper), {}
    names = {id(parameter): name.removeprefix("module.") for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def look(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            seen.update({names[id(parameter)]: full(parameter.grad) for parameter in group["params"]})

    optimizer.register_step_pre_hook(look)
    pipe = tg.attach(model, optimizer, tg.Plan(**PLANS[plan]))
    mine = left_out.get(dist.get_rank(), [])
    for window in pipe.windows(ragged_batches(dist.get_rank())[:K]):
        for number, (inputs, target) in enumerate(window):
            loss = F.cross_entropy(model(inputs), target)
            if number not in mine:
                pipe.backward(loss)
            elif gives_loss:
                pipe.skip(loss * torch.nan)
            else:
                pipe.skip()
        record = pipe.step()
    return seen, record.weight


MODES = [("ddp", "last"), ("ddp", "every"), ("ddp", "compress"), ("fsdp2", "last"), ("fsdp2", "every")]


@pytest.mark.parametrize(("mode", "left_out"), in_turn(MODES, LEFT_OUT))
def test_the_gradient_is_that_of_the_others(mode, left_out):
    wrapper, plan = mode
    kept = [
        batch
        for rank in range(WORLD)
        for number, batch in enumerate(ragged_batches(rank)[:K])
        if number not in LEFT_OUT[left_out].get(rank, [])
    ]
    target = small_model().double()
    F.cross_entropy(target(torch.cat([x for x, _ in kept]).double()), torch.cat([y for _, y in kept])).backward()
    for seen, weight in run_ranks(WORLD, train, wrapper, plan, LEFT_OUT[left_out], True):
        assert weight == sum(len(labels) for _, labels in kept)
        for name, parameter in target.named_parameters():
            assert float((seen[name].double() - parameter.grad).norm() / parameter.grad.norm()) < 1e-6


def refused(wrapper, plan, gives_loss, error, words):
    with pytest.raises(error, match=words):
        train(wrapper, plan, {0: [0], 1: [0]}, gives_loss)


@pytest.mark.parametrize(
    ("wrapper", "plan", "gives_loss", "error", "words"),
    [
        ("ddp", "backward", True, tg.UnsupportedError, 'overlap="none"'),
        ("fsdp2", "backward", True, tg.UnsupportedError, "compressed during backward"),
        ("ddp", "last", False, tg.UsageError, r"write pipe.skip\(loss\)"),
        ("fsdp2", "last", False, tg.UsageError, r"write pipe.skip\(loss\)"),
    ],
)
def test_where_n_cannot_be_corrected_or_others_wait_it_is_refused(wrapper, plan, gives_loss, error, words):
    run_ranks(WORLD, refused, wrapper, plan, gives_loss, error, words)
