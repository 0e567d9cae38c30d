"""FSDP2 with sync="every" holds no unsharded gradients between micro-batches; with "last" it holds all of them."""

import pytest
import torch
import torch.nn.functional as F

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import ragged_batches, small_model, wrap
from tightgrad_lab.bench.accumulate import memory_of
from tightgrad_lab.bench.loops import LOOPS, Work

MICRO_BATCHES = 3


def unsharded_elements(sync):
    """Elements of unsharded gradients that this rank holds after each micro-batch of a window."""
    model = wrap(small_model(), "fsdp2")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(MICRO_BATCHES, sync=sync)))
    held = []
    window = next(pipe.windows(ragged_batches(0)))
    for inputs, labels in window:
        pipe.backward(F.cross_entropy(model(inputs), labels))
        held.append(sum(grad.numel() for param in fsdp_params(model) for grad in unsharded_grads(param)))
    pipe.step()
    return held


def fsdp_params(model):
    for module in model.modules():
        if hasattr(module, "_get_fsdp_state"):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                yield from group.fsdp_params


def unsharded_grads(param):
    unsharded = getattr(param, "_unsharded_param", None)
    grads = (param.unsharded_accumulated_grad, None if unsharded is None else unsharded.grad)
    return [grad for grad in grads if grad is not None]


def test_what_is_held_between_micro_batches():
    everything = sum(parameter.numel() for parameter in small_model().parameters())
    assert run_ranks(2, unsharded_elements, "every") == [[0] * MICRO_BATCHES] * 2
    assert run_ranks(2, unsharded_elements, "last") == [[everything, everything, 0]] * 2


def peaks(layers):
    works = [Work(wrapper=f"fsdp2 {sync}", samples=1, length=4, layers=layers) for sync in ("last", "every")]
    loops = [loop for loop in LOOPS if loop.name in ("loop", "tightgrad")]
    return {(work.wrapper, loop.name): memory_of(loop, work, torch.device("cpu")) for work in works for loop in loops}


@pytest.mark.slow
def test_peak_memory_is_the_hand_written_loops_or_less():
    for peak in run_ranks(2, peaks, 3):
        fetched_ahead = 8 * 1 * 5 * MICRO_BATCHES  # four, counted before the first backward
        for sync in ("last", "every"):
            wrapper = f"fsdp2 {sync}"
            assert peak[wrapper, "tightgrad"] <= peak[wrapper, "loop"] + fetched_ahead
        assert peak["fsdp2 every", "tightgrad"] < 0.95 * peak["fsdp2 last", "tightgrad"]


@pytest.mark.slow
def test_a_root_that_stays_gathered_is_not_gathered_beside_all_gradients():
    for peak in run_ranks(2, peaks, 1):
        assert peak["fsdp2 last", "tightgrad"] < 0.95 * peak["fsdp2 last", "loop"]
