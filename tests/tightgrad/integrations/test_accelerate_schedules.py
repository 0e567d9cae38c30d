"""`accelerator.gradient_accumulation_steps` may change: from the next window on, also in the middle of an epoch."""

import pytest
import torch
from torch.utils.data import DataLoader

import tightgrad as tg
from support.accelerate_state import reset
from support.ranks import run_ranks
from support.tagging import BATCH, PLANS, Tagger, Tokens, check_equal, launched, num_tokens, weights_of
from tightgrad.integrations.accelerate import TightAccelerator


def make(plan, steps=4, ranks=1):
    accelerator = TightAccelerator(plan=plan, weight=num_tokens, gradient_accumulation_steps=steps, cpu=True)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return accelerator, *accelerator.prepare(model, optimizer, DataLoader(Tokens(ranks), batch_size=BATCH))


def epoch(accelerator, model, optimizer, loader, numbers=()):
    """One epoch over 7 batches; `numbers` are set after these batches. Gives the micro-batches of each step."""
    found = []
    for index, batch in enumerate(loader):
        accelerator.backward(model(**batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
        if accelerator.sync_gradients:
            found.append(accelerator.loop.record.micro_batches)
        accelerator.gradient_accumulation_steps = dict(numbers).get(index, accelerator.gradient_accumulation_steps)
    return found


@pytest.mark.parametrize("name", PLANS)
def test_a_number_for_each_epoch(name):
    accelerator, model, *rest = make(PLANS[name])
    found = []
    for number in (4, 1, 2):
        accelerator.gradient_accumulation_steps = number
        found += epoch(accelerator, model, *rest)
    assert found == [4, 3, *[1] * 7, 2, 2, 2, 1]
    other = Tagger()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    plan = tg.Plan(tg.Accumulate(((0, 4), (2, 1), (9, 2)), fetch="window"), PLANS[name].compress, PLANS[name].clip)
    pipe = tg.attach(other, optimizer, plan, weight=num_tokens)
    for _ in range(3):
        for window in pipe.windows(DataLoader(Tokens(), batch_size=BATCH)):
            for batch in window:
                pipe.backward(other(**batch)["loss"])
            pipe.step()
    check_equal(weights_of(model), weights_of(other))


@pytest.mark.parametrize(
    ("numbers", "found"), [({1: 1}, [4, 1, 1, 1]), ({3: 2}, [4, 2, 1]), ({0: 2, 3: 3}, [4, 3]), ({5: 1}, [4, 3])]
)
def test_a_number_that_changes_in_the_middle_counts_from_the_next_window(numbers, found):
    assert epoch(*make(PLANS["clipped"]), numbers.items()) == found


def test_a_number_above_the_first_has_to_be_known_at_the_beginning():
    accelerator, model, *rest = make(PLANS["clipped"], steps=1)
    accelerator.gradient_accumulation_steps = 2
    with pytest.raises(tg.ConfigError, match=r"never has more than one.*Attach it with the largest number"):
        epoch(accelerator, model, *rest)
    check_equal(weights_of(model), weights_of(Tagger()))


def test_a_state_that_is_loaded_goes_on_with_its_number(tmp_path):
    accelerator, model, *rest = make(PLANS["compressed"])
    accelerator.gradient_accumulation_steps = 2
    epoch(accelerator, model, *rest)
    accelerator.save_state(tmp_path)
    epoch(accelerator, model, *rest)
    reset()
    accelerator, other, *rest = make(PLANS["compressed"])
    accelerator.load_state(tmp_path)
    accelerator.gradient_accumulation_steps = 2
    assert epoch(accelerator, other, *rest) == [2, 2, 2, 1]
    check_equal(weights_of(other), weights_of(model))


def different_ranks(name):
    with launched():
        try:
            accelerator, model, optimizer, loader = make(PLANS[name], ranks=2)
            epoch(accelerator, model, optimizer, loader)
            accelerator.gradient_accumulation_steps = 2 + accelerator.process_index
            with pytest.raises(tg.UsageError, match="2 on rank 0, 3 on rank 1"):
                epoch(accelerator, model, optimizer, loader)
            accelerator.gradient_accumulation_steps = 2
            return epoch(accelerator, model, optimizer, loader)
        finally:
            reset()


@pytest.mark.parametrize("name", PLANS)
def test_ranks_with_different_numbers_are_told(name):
    assert run_ranks(2, different_ranks, name) == [[2, 2, 2, 1]] * 2
