"""The count of a window: begun when it is cut, waited for where it is needed first, and never left under way."""

import gc

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.training import batches, linear, loss_of, on_ranks, train
from support.watched import Alone, HasTwin, events_of_a_window, failing_at, watched


def make(collective, model=None, accumulate=None, **arguments):
    model = model or linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = tg.Plan(accumulate=accumulate or tg.Accumulate(2))
    return model, tg.attach(model, optimizer, plan, collective=collective, **arguments)


def events_of(loader, **arguments):
    """What happens in the first window, in order."""
    collective = HasTwin()
    model, pipe = make(collective, **arguments)
    return events_of_a_window(collective, pipe, model, loader)


def test_the_first_forward_runs_meanwhile():
    one = ["begun", "forward", "waited", "backward", "forward", "backward"]
    assert events_of(batches(4)) == one


def test_one_rank_alone_counts_without_a_tensor():
    collective = Alone()
    model, pipe = make(collective)
    assert [record.weight for record in train(pipe, model, batches(3))] == [8.0, 4.0]
    assert collective.events == []


AT_ONCE = {
    "the loader has ended": {"loader": batches(1)},
    "there is no batch": {"loader": []},
    "nothing counts here": {"loader": batches(4), "weight": lambda batch: 0.0},
    "layers talk in the forward": {
        "loader": batches(4),
        "model": nn.Sequential(linear(), nn.ModuleList([nn.SyncBatchNorm(2)])[0].eval()),
    },
}


@pytest.mark.parametrize("case", AT_ONCE.values(), ids=AT_ONCE)
def test_a_rank_that_must_know_waits_at_once(case):
    assert events_of(**case)[:2] == ["begun", "waited"]


def test_a_window_by_weight_waits_no_sooner():
    settings = tg.Accumulate(None, window_weight=8.0)
    assert events_of(batches(4), accumulate=settings)[:3] == ["begun", "forward", "waited"]


def test_a_loop_that_breaks_leaves_nothing_under_way():
    collective = HasTwin()
    model, pipe = make(collective)
    for _ in pipe.windows(batches(4)):
        break
    gc.collect()
    assert collective.events == ["begun", "waited"]
    pipe.abandon()
    assert [record.weight for record in train(pipe, model, batches(4))] == [16.0, 16.0]


def test_abandoning_waits():
    collective = HasTwin()
    model, pipe = make(collective)
    windows = pipe.windows(batches(6))
    next(windows)
    assert collective.events == ["begun"]
    pipe.abandon()
    assert collective.events == ["begun", "waited"]
    assert pipe.state_dict()["num_consumed"] == 2
    for batch in next(windows):
        pipe.backward(loss_of(model, batch))
    assert pipe.step().weight == 16.0


@pytest.mark.parametrize(
    "look",
    [
        lambda pipe, window: window.total_weight,
        lambda pipe, window: pipe.state_dict()["open_window"]["total_weights"]["loss"],
    ],
)
def test_whoever_asks_waits(look):
    collective = HasTwin()
    _, pipe = make(collective)
    windows = pipe.windows(batches(6))
    window = next(windows)
    assert look(pipe, window) in (16.0, 0.5)
    assert collective.events == ["begun", "waited"]
    assert window.total_weights == {"loss": 16.0}
    assert collective.events == ["begun", "waited"]


@pytest.mark.parametrize("fetch", ["window", "batch"])
def test_shorter_loaders_count_as_before(fetch):
    def body(collective):
        collective = watched(collective)
        model, pipe = make(collective, accumulate=tg.Accumulate(2, fetch=fetch))
        records = train(pipe, model, batches(5 - 2 * collective.rank, collective.rank))
        return [(record.weight, record.micro_batches) for record in records], model.weight.detach().clone()

    (first, weights), (second, others) = on_ranks(2, body)
    assert first == [(16.0, 2), (12.0, 2), (4.0, 1)]
    assert second == [(16.0, 2), (12.0, 1), (4.0, 0)]
    assert torch.equal(weights, others)


@pytest.mark.parametrize("fetch", ["window", "batch"])
@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_a_window_that_another_rank_failed_to_fetch_has_never_been(position, fetch):
    """Both ranks go on as if it had not been cut, with the same steps as if nothing had happened."""

    def body(collective, fails):
        collective = watched(collective)
        model, pipe = make(collective, accumulate=tg.Accumulate(2, fetch=fetch))
        loader, steps, error = batches(8, collective.rank), 0, None
        if fails:
            try:
                if collective.rank == 0:
                    train(pipe, model, failing_at(position, loader))
                else:
                    train(pipe, model, loader)
            except (OSError, tg.UsageError) as raised:
                error = str(raised)
                pipe.abandon()
            steps = pipe.state_dict()["num_consumed"]
            assert steps == position // 2 * 2
            assert model.weight.grad is None
            with pytest.raises(tg.UsageError, match=r"step\(\) needs a window"):
                pipe.step()
        train(pipe, model, loader[steps:])
        return error, model.weight.detach().clone()

    (first, weights), (second, others) = on_ranks(2, lambda collective: body(collective, True))
    assert first == "the disk is gone"
    assert second.startswith("rank 0 failed while fetching a window")
    assert torch.equal(weights, others)
    assert torch.equal(weights, on_ranks(2, lambda collective: body(collective, False))[0][1])


def test_whoever_looks_first_hears_of_the_failure_and_so_does_the_next():
    def body(collective):
        collective = watched(collective)
        _, pipe = make(collective)
        loader = failing_at(0, []) if collective.rank == 0 else batches(4)
        windows = pipe.windows(loader)
        window = next(windows)
        for _ in range(2):
            with pytest.raises(tg.UsageError, match="rank 0 failed while fetching"):
                assert window.total_weight
        pipe.abandon()
        return collective.events

    first, second = on_ranks(2, body)
    assert isinstance(first, OSError)
    assert second == ["begun", "waited"]


def test_a_step_by_run_knows_before_its_first_forward():
    """A rank that ran out of memory there would ask the others, and the one that failed would not answer."""
    collective = HasTwin()
    model, pipe = make(collective, accumulate=tg.Accumulate(2, on_oom="split"))

    def loss(batch):
        collective.events.append("forward")
        return loss_of(model, batch)

    windows = pipe.windows(batches(4))
    pipe.run(next(windows), loss)
    assert collective.events == ["begun", "waited", "forward", "forward"]
