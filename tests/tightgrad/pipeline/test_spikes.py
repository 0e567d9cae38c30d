"""Steps whose gradient is finite and a spike are left out, on all ranks, without a trace."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg
from support.in_turn import in_turn
from tightgrad.plan.guard import spike

BOUNDS = {
    "bound": {"skip_above": 50.0},
    "median": {"skip_above_median": 20.0},
    "zscore": {"skip_above_zscore": 30.0},
}
PARTS = {
    "plain": {},
    "clip": {"clip": tg.clip.ZClip()},
    "compress": {"compress": tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback())},
}
SPIKE = 12


def start():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))


START = start()


def net():
    """The same weights on every call, also from several threads."""
    return copy.deepcopy(START)


def data(count=20, spikes=()):
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 6, generator=generator), torch.randn(8, 4, generator=generator)) for _ in range(count)]
    return [(x, y * 1e4 if number in spikes else y) for number, (x, y) in enumerate(batches)]


def train(plan, batches, collective=None):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    pipe = tg.attach(model, optimizer, plan, scheduler=schedule, collective=collective)
    records = []
    for window in pipe.windows(batches):
        for inputs, target in window:
            pipe.backward(F.mse_loss(model(inputs), target))
        records.append(pipe.step())
    return model, optimizer, pipe, records


@pytest.mark.parametrize(("parts", "bound"), in_turn(PARTS, BOUNDS))
def test_a_step_that_is_left_out_has_not_been(parts, bound):
    plan = tg.Plan(guard=tg.Guard(**BOUNDS[bound]), **PARTS[parts])
    with pytest.warns(tg.TightGradWarning, match="step 12 was left out: the gradient's norm, .* is above") as told:
        model, optimizer, pipe, records = train(plan, data(spikes=[SPIKE]))
    assert len(told) == 1
    assert "Largest are those of '2.weight'" in str(told[0].message)
    assert [record.step for record in records if record.skip_reason == "spike"] == [SPIKE]
    without = data()
    del without[SPIKE]
    twin, twins_optimizer, twins_pipe, _ = train(plan, without)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    mine, theirs = pipe.state_dict(), twins_pipe.state_dict()
    assert mine["step"] == theirs["step"] == 19
    for slot, values in mine["slots"].items():
        for name, value in values.items():
            torch.testing.assert_close(value, theirs["slots"][slot][name], rtol=0, atol=0, equal_nan=True)
    for state, other in zip(optimizer.state.values(), twins_optimizer.state.values(), strict=True):
        assert all(torch.equal(state[key], other[key]) for key in state)
    assert optimizer.param_groups[0]["lr"] == twins_optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("bound", BOUNDS)
def test_one_after_the_other_is_an_error_at_the_limit(bound):
    plan = tg.Plan(guard=tg.Guard(**BOUNDS[bound], max_consecutive_skips=3))
    with (
        pytest.warns(tg.TightGradWarning, match="left out"),
        pytest.raises(tg.GradientSpikeError, match=r"3 steps in a row were left out .* Lower the learning rate"),
    ):
        train(plan, data(spikes=range(SPIKE, 20)))


def test_an_applied_step_in_between_starts_the_count_again():
    plan = tg.Plan(guard=tg.Guard(skip_above=50.0, max_consecutive_skips=2))
    with pytest.warns(tg.TightGradWarning, match="left out"):
        *_, records = train(plan, data(spikes=[3, 5, 7]))
    assert [record.skipped for record in records[:8]] == [number in (3, 5, 7) for number in range(8)]


def test_nothing_is_left_out_before_ten_norms_are_known():
    guard = tg.Guard(skip_above_median=20.0, skip_above_zscore=30.0)
    *_, records = train(tg.Plan(guard=guard), data(spikes=[9]))
    assert not any(record.skipped for record in records)


def test_only_the_fixed_bound_remembers_nothing():
    assert tg.Plan(guard=tg.Guard(skip_above=5.0)).slots == {}
    *_, pipe, _ = train(tg.Plan(guard=tg.Guard(skip_above_median=5.0, history=10)), data(12))
    assert (
        pipe.state.slots["guard_norms"][
            "*model*" if "*model*" in pipe.state.slots["guard_norms"] else next(iter(pipe.state.slots["guard_norms"]))
        ].numel()
        == 10
    )


def test_a_run_that_is_resumed_remembers_the_norms():
    plan = tg.Plan(guard=tg.Guard(skip_above_median=20.0))
    model, optimizer, pipe, _ = train(plan, data(12))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), pipe.state_dict()))
    again = net()
    again.load_state_dict(saved[0])
    taken = torch.optim.AdamW(again.parameters(), lr=0.01)
    taken.load_state_dict(saved[1])
    pipe = tg.attach(again, taken, plan)
    pipe.load_state_dict(saved[2])
    for window in pipe.windows(data(spikes=[SPIKE])[SPIKE : SPIKE + 1]):
        for inputs, target in window:
            pipe.backward(F.mse_loss(again(inputs), target))
        with pytest.warns(tg.TightGradWarning, match="20 times the median of the last 12 steps"):
            assert pipe.step().skip_reason == "spike"


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_leave_it_out(world_size):
    plan = tg.Plan(guard=tg.Guard(skip_above=50.0), **PARTS["compress"])

    def body(collective):
        mine = data(6, spikes=[2] if collective.rank == 1 else [])
        model, *_, records = train(plan, mine, collective)
        return [record.skip_reason for record in records], [p.detach().clone() for p in model.parameters()]

    with pytest.warns(tg.TightGradWarning, match="step 2 was left out"):
        results = tg.collectives.run_threaded(world_size, body)
    for reasons, weights in results:
        assert reasons == [None, None, "spike", None, None, None]
        assert all(map(torch.equal, weights, results[0][1]))


def test_local_updates_leave_out_an_outer_step():
    guard = tg.Guard(skip_above=0.5)
    model = nn.Linear(2, 1)
    outer = tg.attach_local(model, tg.DiLoCo(every=1, plan=tg.Plan(guard=guard)))
    with torch.no_grad():
        model.weight.add_(10.0)
    with pytest.warns(tg.TightGradWarning, match="left out"):
        assert outer.step().skip_reason == "spike"


class TestBounds:
    KNOWN = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0], dtype=torch.float64)

    @pytest.mark.parametrize(("norm", "expected"), [(60.1, "10 times the median .* \\(6\\)"), (59.9, None)])
    def test_a_multiple_of_the_median(self, norm, expected):
        found = spike(norm, self.KNOWN, tg.Guard(skip_above_median=10.0))
        assert (found is None) == (expected is None)

    def test_a_zscore(self):
        deviation = float(self.KNOWN.std())
        guard = tg.Guard(skip_above_zscore=4.0)
        assert spike(6.0 + 4.01 * deviation, self.KNOWN, guard)
        assert spike(6.0 + 3.99 * deviation, self.KNOWN, guard) is None

    def test_equal_norms_have_a_deviation_of_one_per_cent(self):
        guard, same = tg.Guard(skip_above_zscore=3.0), torch.full((20,), 2.0, dtype=torch.float64)
        assert spike(2.05, same, guard) is None
        assert spike(2.07, same, guard)

    @pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "5", True])
    @pytest.mark.parametrize("name", ["skip_above", "skip_above_median", "skip_above_zscore"])
    def test_bounds_are_checked(self, name, bad):
        with pytest.raises(tg.ConfigError, match=name):
            tg.Guard(**{name: bad})

    def test_plans_of_before_are_read(self):
        config = tg.Plan(guard=tg.Guard("skip")).to_config()
        config["guard"] = {"on_nonfinite": "skip", "max_consecutive_skips": 10, "compare_every": 0}
        assert tg.Plan.from_config(config) == tg.Plan(guard=tg.Guard("skip"))
