"""`TightAccelerator` with `FullyShardedDataParallelPlugin(fsdp_version=2)`, and HSDP."""

import contextlib

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import ParallelismConfig
from torch.utils.data import DataLoader

import tightgrad as tg
from support.accelerate_fsdp2 import plugin, taken_on_cpus
from support.accelerate_state import reset
from support.ranks import run_ranks
from support.tagging import (
    BATCH,
    NUM_BATCHES,
    PLANS,
    STEPS,
    Tagger,
    Tokens,
    check_equal,
    launched,
    num_tokens,
    weights_of,
)
from support.wrapping import full
from tightgrad.integrations.accelerate import TightAccelerator

pytestmark = pytest.mark.filterwarnings("error::tightgrad.TightGradWarning")


def accelerated(plan, **settings):
    accelerator = TightAccelerator(
        plan=plan, weight=num_tokens, gradient_accumulation_steps=STEPS, cpu=True, fsdp_plugin=plugin(), **settings
    )
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(Tokens(dist.get_world_size()), batch_size=BATCH)
    return accelerator, *accelerator.prepare(model, optimizer, loader)


def whole(model):
    return {name: full(value).clone() for name, value in model.state_dict().items()}


def train(accelerator, model, optimizer, loader, around=None, folder=None, done=0):
    """Two epochs, less the batches that are done; with a folder, saved in mid-window, between windows and later."""
    while done < 2 * NUM_BATCHES:
        skip = done % NUM_BATCHES
        for batch in accelerator.skip_first_batches(loader, skip) if skip else loader:
            with around(accelerator, model, done) if around else accelerator.accumulate(model):
                accelerator.backward(model(**batch)["loss"])
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            done += 1
            if folder is not None and done in (3, 4, 13):
                accelerator.save_state(folder / str(done))
    return whole(model)


def big_batches(plan):
    """The float64 weights after the windows as big batches on one device."""
    data, model = Tokens(dist.get_world_size()), Tagger().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    width = BATCH * dist.get_world_size()
    for first, last in [(0, STEPS), (STEPS, NUM_BATCHES)] * 2:
        optimizer.zero_grad()
        rows = slice(first * width, last * width)
        model(data.inputs[rows], data.labels[rows])["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip.max_norm)
        optimizer.step()
    return weights_of(model)


def against_big_batches(settings):
    with launched(), taken_on_cpus():
        parts = accelerated(PLANS["clipped"], **settings)
        have, want = train(*parts), big_batches(PLANS["clipped"])
        assert type(parts[1]).__name__ == "FSDPTagger"
        assert parts[0].pipe.state.step == 4
    return max(float((have[name].double() - want[name]).norm() / want[name].norm()) for name in want)


@pytest.mark.parametrize("ranks", [2, 4])
def test_it_is_the_big_batch(ranks):
    hsdp = {"parallelism_config": ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)} if ranks == 4 else {}
    assert max(run_ranks(ranks, against_big_batches, hsdp)) < 1e-6


def goes_on(folder, name):
    with launched(), taken_on_cpus():
        want = train(*accelerated(PLANS[name]), folder=folder)
        for done in (3, 4, 13):
            reset()
            parts = accelerated(PLANS[name])
            parts[0].load_state(folder / str(done))
            check_equal(train(*parts, done=done), want)


@pytest.mark.parametrize("name", PLANS)
def test_it_goes_on_between_any_two_batches(name, tmp_path):
    run_ranks(2, goes_on, tmp_path, name)


def not_synchronised(accelerator, model, done):
    """What a loop that counts by itself puts around its batches: none of a short window's is synchronised."""
    return contextlib.nullcontext() if (done + 1) % STEPS == 0 else accelerator.no_sync(model)


def unsynchronised(sharded):
    with launched(), taken_on_cpus():
        if sharded:
            parts = accelerated(PLANS["clipped"])
        else:
            accelerator = TightAccelerator(
                plan=PLANS["clipped"], weight=num_tokens, gradient_accumulation_steps=STEPS, cpu=True
            )
            model = Tagger()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            parts = accelerator, *accelerator.prepare(model, optimizer, DataLoader(Tokens(2), batch_size=BATCH))
        before = []
        steps = parts[0].pipe.optimizers[0].register_step_post_hook(lambda *_: before.append(whole(parts[1])))
        with (
            pytest.raises(tg.UsageError, match=r"no_sync\(\)|set_requires_gradient_sync"),
            pytest.warns(tg.TightGradWarning, match="left"),
        ):
            train(*parts, around=not_synchronised)
        steps.remove()
        (after_first,) = before
        check_equal(whole(parts[1]), after_first)  # found before the short window's step, and not after it


@pytest.mark.parametrize("sharded", [False, True])
def test_a_backward_without_synchronisation_is_told_before_weights_move(sharded):
    run_ranks(2, unsynchronised, sharded)
