"""Muon for matrices and AdamW for the rest in one pipeline, under every wrapper."""

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import tightgrad as tg
from support.ranks import RankError, run_ranks
from support.wrapping import full, ragged_batches, small_model, wrap

K, WORLD, MAX_NORM = 3, 2, 0.05
PLANS = {
    "clip": tg.Plan(accumulate=tg.Accumulate(K), clip=tg.clip.GlobalNorm(MAX_NORM)),
    "compress": tg.Plan(
        accumulate=tg.Accumulate(K),
        compress=tg.Compress(tg.codecs.Cast("float32"), feedback=tg.ErrorFeedback()),
        clip=tg.clip.GlobalNorm(MAX_NORM),
    ),
}


def pair(model):
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() != 2]
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(vectors, lr=0.02)]


def plainly(name):
    return name.removeprefix("module.")


def train(wrapper, plan):
    """Gradients that the optimizers were given in one window, the weights after it, and the record's norm."""
    model = wrap(small_model(), wrapper)
    both, seen = pair(model), {}
    names = {id(parameter): plainly(name) for name, parameter in model.named_parameters()}

    def look(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            seen.update({names[id(parameter)]: full(parameter.grad) for parameter in group["params"]})

    for optimizer in both:
        optimizer.register_step_pre_hook(look)
    pipe = tg.attach(model, both, plan)
    for window in pipe.windows(ragged_batches(dist.get_rank())[:K]):
        for inputs, target in window:
            pipe.backward(F.cross_entropy(model(inputs), target))
        record = pipe.step()
    return seen, {plainly(name): full(parameter) for name, parameter in model.named_parameters()}, record.grad_norm


def big_batch(max_norm=MAX_NORM):
    """The model with the gradient of all ranks' batches as one, in float64, clipped."""
    model = small_model().double()
    batches = [batch for rank in range(WORLD) for batch in ragged_batches(rank)[:K]]
    F.cross_entropy(
        model(torch.cat([inputs for inputs, _ in batches]).double()), torch.cat([t for _, t in batches])
    ).backward()
    return model, float(tg.clip_grad_norm_(model.parameters(), max_norm))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_gradients_and_weights_are_those_of_one_big_batch(wrapper, plan):
    target, norm = big_batch()
    by_hand = small_model()
    for parameter, exact in zip(by_hand.parameters(), target.parameters(), strict=True):
        parameter.grad = exact.grad.float()
    for optimizer in pair(by_hand):
        optimizer.step()
    for seen, weights, grad_norm in run_ranks(WORLD, train, wrapper, PLANS[plan]):
        assert grad_norm == pytest.approx(norm, rel=1e-6)
        for name, parameter in target.named_parameters():
            assert float((seen[name].double() - parameter.grad).norm() / parameter.grad.norm()) < 1e-6
        for name, parameter in by_hand.named_parameters():
            # Muon iterates in bfloat16, so gradients that differ in their last bit may step by one part in 100.
            torch.testing.assert_close(weights[name], parameter, rtol=0, atol=2e-3 if parameter.dim() == 2 else 1e-5)


SEPARATE = (0.05, 0.02)
BY_OPTIMIZER = {
    name: replace(plan, clip=tg.clip.PerOptimizer(tuple(map(tg.clip.GlobalNorm, SEPARATE))))
    for name, plan in PLANS.items()
}


@pytest.mark.parametrize("plan", BY_OPTIMIZER)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_each_optimizer_has_a_norm_of_its_own_over_all_ranks(wrapper, plan):
    target, _ = big_batch(math.inf)
    for optimizer, bound in zip(pair(target), SEPARATE, strict=True):
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert float(tg.clip_grad_norm_(held, bound)) > bound
    for seen, _, _ in run_ranks(WORLD, train, wrapper, BY_OPTIMIZER[plan]):
        for name, parameter in target.named_parameters():
            assert float((seen[name].double() - parameter.grad).norm() / parameter.grad.norm()) < 1e-6


def other_order():
    model = wrap(small_model(), "ddp")
    both = pair(model)
    tg.attach(model, both if dist.get_rank() == 0 else both[::-1], PLANS["clip"])


def test_ranks_compare_which_optimizer_holds_what():
    with pytest.raises(RankError, match="optimizers differ on rank 1"):
        run_ranks(WORLD, other_order)
