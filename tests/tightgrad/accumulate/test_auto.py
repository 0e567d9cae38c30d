"""fetch="auto": as the loop by hand does, on one process where the plan allows it; whole windows first elsewhere."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import tightgrad as tg
from support.streamed import make, ragged
from support.training import batches, linear, loss_of, on_ranks, train
from support.watched import Alone, HasTwin
from tightgrad.integrations.external_loop import with_micro_batches
from tightgrad.scaling import NoiseScale


def fetched_before_the_first(pipe):
    """How many batches have left the loader when the first is given out."""
    taken = []

    def loader():
        for batch in batches(4):
            taken.append(batch)
            yield batch

    next(iter(next(pipe.windows(loader()))))
    return len(taken)


def pipe_of(accumulate, collective=None, **plan):
    model = linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = dict.fromkeys(accumulate.losses, 4.0)
    plan = tg.Plan(accumulate=accumulate, **plan)
    return tg.attach(model, optimizer, plan, collective=collective, weight=lambda batch: losses)


WHOLE = {
    "by weight": {"accumulate": tg.Accumulate(None, window_weight=12.0)},
    "several losses": {"accumulate": tg.Accumulate(3, losses=("one", "two"))},
    "carry": {"accumulate": tg.Accumulate(3, partial="carry")},
    "drop": {"accumulate": tg.Accumulate(3, partial="drop")},
    "out of memory": {"accumulate": tg.Accumulate(3, on_oom="split")},
    "noise scale": {"accumulate": tg.Accumulate(3), "noise_scale": NoiseScale()},
    "several ranks": {"accumulate": tg.Accumulate(3), "collective": HasTwin()},
    "asked for": {"accumulate": tg.Accumulate(3, fetch="window")},
}


def test_it_is_the_default():
    assert tg.Accumulate(2).fetch == "auto"


@pytest.mark.parametrize(
    "settings",
    [{"accumulate": tg.Accumulate(3)}, {"accumulate": tg.Accumulate(((0, 3), (5, 2))), "collective": Alone()}],
)
def test_one_at_a_time_on_one_process(settings):
    assert fetched_before_the_first(pipe_of(**settings)) == 1


@pytest.mark.parametrize("settings", WHOLE.values(), ids=WHOLE)
def test_the_whole_window_first(settings):
    assert fetched_before_the_first(pipe_of(**settings)) == 3


def test_a_plan_of_an_older_version_is_read():
    config = tg.Plan(accumulate=tg.Accumulate(2, fetch="window")).to_config()
    assert tg.Plan.from_config(config).accumulate.fetch == "window"
    del config["accumulate"]["fetch"]
    assert tg.Plan.from_config(config).accumulate.fetch == "auto"


def test_frameworks_that_hand_over_whole_windows():
    for plan in (tg.Plan(), tg.Plan(accumulate=tg.Accumulate(2))):
        assert with_micro_batches(plan, 2, "accumulate_grad_batches").accumulate.fetch == "window"


class Noisy(nn.Module):
    """Draws from torch's global generator, as dropout does; or from NumPy's."""

    def __init__(self, draw):
        super().__init__()
        self.linear, self.draw = linear(), draw

    def forward(self, batch):
        return self.linear(batch * self.draw())


def torch_loader():
    """As nanoGPT's get_batch."""
    for _ in range(8):
        yield torch.randn(4, 3)


def numpy_loader():
    for _ in range(8):
        yield torch.from_numpy(np.random.standard_normal((4, 3)).astype(np.float32))


def python_loader():
    for _ in range(8):
        yield torch.full((4, 3), random.random())


def torch_draw():
    return torch.rand(())


def numpy_draw():
    return float(np.random.uniform())


DRAWS = {
    "torch": (torch_loader, torch_draw),
    "numpy": (numpy_loader, numpy_draw),
    "python": (python_loader, random.random),
}


def seed():
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)


def trained(loader, draw, **settings):
    seed()
    model = Noisy(draw)
    plan = tg.Plan(accumulate=tg.Accumulate(4, **settings))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    train(pipe, model, loader())
    return model.linear.weight.detach()


def by_hand(loader, draw):
    seed()
    model = Noisy(draw)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for position, batch in enumerate(loader()):
        (loss_of(model, batch) / 4).backward()
        if position % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return model.linear.weight.detach()


@pytest.mark.parametrize(("loader", "draw"), DRAWS.values(), ids=DRAWS)
def test_random_numbers_are_drawn_in_the_order_of_the_loop_by_hand(loader, draw):
    expected = by_hand(loader, draw)
    assert torch.equal(trained(loader, draw), expected)
    assert not torch.allclose(trained(loader, draw, fetch="window"), expected)


@pytest.mark.parametrize(
    ("loader", "draw", "named"),
    [
        (torch_loader, torch_draw, "torch's global generator"),
        (numpy_loader, numpy_draw, r"numpy\.random"),
        (python_loader, random.random, "both draw from random,"),
    ],
)
def test_another_order_is_told_once_by_rank_0(loader, draw, named):
    """On several ranks, and where the plan needs whole windows."""
    with pytest.warns(tg.TightGradWarning, match=rf"{named}.*other random numbers than in a loop by hand") as told:
        trained(loader, draw, on_oom="split")
    assert len(told) == 1
    assert told[0].filename.endswith("training.py"), "the loop's own line"


def test_on_several_ranks_it_is_told():
    collective = HasTwin()
    model = Noisy(torch_draw)
    plan = tg.Plan(accumulate=tg.Accumulate(4))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective)
    with pytest.warns(tg.TightGradWarning, match="torch's global generator"):
        train(pipe, model, torch_loader())


QUIET = {
    "only the loader draws": (torch_loader, lambda: 1.0),
    "only the forward draws": (lambda: batches(8), torch_draw),
    "each has its own": (numpy_loader, torch_draw),
}


@pytest.mark.parametrize(("loader", "draw"), QUIET.values(), ids=QUIET)
def test_where_the_order_is_no_matter_nothing_is_said(loader, draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(loader, draw, on_oom="split")


def test_whoever_has_chosen_is_not_told():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(torch_loader, torch_draw, fetch="window")
        trained(torch_loader, torch_draw, fetch="batch")


def test_the_base_seed_of_a_data_loader_is_no_batch():
    """It is drawn once, before the first batch, in a loop by hand as well."""
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 3)), 4, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(lambda: (batch for (batch,) in data), torch_draw, on_oom="split")


def test_the_gradient_is_that_of_whole_windows():
    (model, pipe), (other, whole) = make("auto"), make("window")
    records, others = train(pipe, model, ragged(7)), train(whole, other, ragged(7))
    torch.testing.assert_close(model.weight, other.weight, rtol=1e-6, atol=1e-7)
    assert [(r.weight, r.micro_batches) for r in records] == [(r.weight, r.micro_batches) for r in others]


def test_ranks_of_threads_still_count_first():
    def body(collective):
        _, pipe = make("auto", k=2, collective=collective)
        window = next(pipe.windows(batches(4, collective.rank)))
        return window.total_weight

    assert on_ranks(2, body) == [16.0, 16.0]
