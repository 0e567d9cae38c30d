"""A model that leaves training mode where it should not is told; loops that change modes on purpose are not."""

import warnings

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.collectives import run_threaded

PLAN = tg.Plan(accumulate=tg.Accumulate(2), clip=tg.clip.GlobalNorm(1.0))


def told(change, plan=PLAN, start=lambda model: None):
    """What is said in a loop of four windows, in which `change(model, window, position)` comes before each forward."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    start(model)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, window in enumerate(pipe.windows(torch.ones(8, 5, 3))):
            for position, batch in enumerate(window):
                change(model, number, position)
                pipe.backward(model(batch).square().mean())
            pipe.step()
    return [str(warning.message) for warning in caught if issubclass(warning.category, tg.TightGradWarning)]


def left_in_the_middle(model, number, position):
    model.train(not (number == 1 and position == 1))


def one_layer_in_the_middle(model, number, position):
    model[1].train(position == 0)


def left_between(model, number, position):
    if number == 2:
        model.eval()


def evaluated(model, number, position):
    model.eval()
    model(torch.ones(1, 3))
    model.train()


def frozen_later(model, number, position):
    if number == 2:
        model[1].eval()


def nothing(model, number, position):
    pass


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (left_in_the_middle, "the model changed between training and evaluation mode"),
        (one_layer_in_the_middle, "'1' changed between training and evaluation mode from one micro-batch"),
        (left_between, "was in training mode in the previous window and is in evaluation mode now"),
    ],
)
def test_it_is_told_once(change, words):
    (message,) = told(change)
    assert words in message
    assert "ignore this TightGradWarning" in message


@pytest.mark.parametrize("change", [evaluated, frozen_later, nothing])
def test_right_loops_are_left_alone(change):
    assert told(change) == []


def test_a_model_that_is_always_in_evaluation_mode_is_left_alone():
    assert told(nothing, start=nn.Module.eval) == []
    assert told(left_in_the_middle, plan=tg.Plan()) == []


def test_rank_0_speaks_for_all():
    model = nn.Linear(3, 2)

    def body(ranks):
        own = nn.Linear(3, 2)
        own.load_state_dict(model.state_dict())
        pipe = tg.attach(own, torch.optim.SGD(own.parameters(), lr=0.1), PLAN, collective=ranks)
        for number, window in enumerate(pipe.windows(torch.ones(4, 5, 3))):
            own.train(number == 0)
            for batch in window:
                pipe.backward(own(batch).square().mean())
            pipe.step()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_threaded(2, body)
    assert len([warning for warning in caught if "is in evaluation mode now" in str(warning.message)]) == 1


def test_a_module_that_one_rank_has_for_itself_is_no_difference():
    def body(ranks):
        own = nn.Sequential(nn.Linear(3, 2))
        if ranks.rank == 0:
            own.append(nn.Identity())
        pipe = tg.attach(own, torch.optim.SGD(own.parameters(), lr=0.0), PLAN, collective=ranks)
        records = []
        for window in pipe.windows(torch.ones(6, 5, 3)):
            for batch in window:
                pipe.backward(own(batch).square().mean())
            records.append(pipe.step())
        return len(records)

    assert run_threaded(2, body) == [3, 3]
