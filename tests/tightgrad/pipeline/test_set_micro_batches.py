"""`pipe.set_micro_batches`: another number from the next window on, on all ranks, saved and restored."""

import pytest
import torch

import tightgrad as tg
from support.in_turn import in_turn
from support.ranks import run_ranks
from support.wrapping import small_model, wrap

LOADER = [torch.randn(2 + i % 3, 20, generator=torch.Generator().manual_seed(i)) for i in range(16)]
PLAN = tg.Plan(
    accumulate=tg.Accumulate(4),
    compress=tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback()),
    clip=tg.clip.GlobalNorm(0.1),
)


def made(plan=PLAN):
    model = small_model()
    return model, tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), plan)


def windows(model, pipe, loader=LOADER):
    """Train; stop after each backward and after each step."""
    for window in pipe.windows(loader):
        for batch in window:
            pipe.backward(model(batch).square().mean())
            yield None
        yield pipe.step()


def train(model, pipe, loader=LOADER):
    return [record.micro_batches for record in windows(model, pipe, loader) if record is not None]


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("fetch", ["window", "batch"])
def test_a_number_for_each_epoch_is_the_schedule_by_steps(fetch):
    model, pipe = made(tg.Plan(tg.Accumulate(4, fetch=fetch), clip=tg.clip.GlobalNorm(0.1)))
    found = []
    for number in (1, 4, 3):
        pipe.set_micro_batches(number)
        found += train(model, pipe)
    assert found == [1] * 16 + [4] * 4 + [3] * 5 + [1]
    schedule = ((0, 1), (16, 4), (20, 3))
    other, planned = made(tg.Plan(tg.Accumulate(schedule, fetch=fetch), clip=tg.clip.GlobalNorm(0.1)))
    assert [train(other, planned) for _ in range(3)] == [found[:16], found[16:20], found[20:]]
    assert same(model, other)


def test_it_counts_from_the_next_window_of_the_same_loader():
    model, pipe = made()
    found = []
    for window in pipe.windows(LOADER):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        found.append(pipe.step().micro_batches)
        pipe.set_micro_batches(found[-1] + 1)
    assert found == [4, 5, 6, 1]


def test_it_takes_the_place_of_a_schedule_and_of_pieces():
    model, pipe = made(tg.Plan(tg.Accumulate(((0, 2), (3, 8)))))
    pipe.set_micro_batches(4)
    assert train(model, pipe) == [4] * 4
    model, pipe = made(tg.Plan(tg.Accumulate(2, source="split")))
    pipe.set_micro_batches(1)
    assert train(model, pipe) == [1] * 16


@pytest.mark.parametrize("stops", [5, 7])  # after a step, and in the middle of a window
def test_it_is_saved_and_restored(stops, tmp_path):
    whole, pipe = made()
    pipe.set_micro_batches(2)
    train(whole, pipe, LOADER[:12])
    model, pipe = made()
    pipe.set_micro_batches(2)
    walk = windows(model, pipe)
    for _ in range(stops + 1):
        next(walk)
    pipe.save(tmp_path)
    kept = model.state_dict(), pipe.optimizer.state_dict()
    model, pipe = made()
    model.load_state_dict(kept[0])
    pipe.optimizer.load_state_dict(kept[1])
    consumed = pipe.load(tmp_path)
    found = train(model, pipe, LOADER[consumed:12])
    assert set(found) == {2}
    assert same(model, whole)


def test_a_state_in_which_none_was_set_brings_the_plans_back():
    model, pipe = made()
    state = pipe.state_dict()
    pipe.set_micro_batches(2)
    pipe.load_state_dict(state)
    assert train(model, pipe) == [4] * 4
    pipe.set_micro_batches(2)
    del state["micro_batches"]  # as earlier versions wrote it
    pipe.load_state_dict(state)
    assert train(model, pipe) == [4] * 4


@pytest.mark.parametrize("value", [-1, 0, 2.5, "2", True])
def test_a_state_that_was_edited_is_refused_and_changes_nothing(value):
    _, pipe = made()
    slots, edited = pipe.state.slots, {**pipe.state_dict(), "micro_batches": value, "step": 7}
    with pytest.raises(tg.StateMismatchError, match="micro_batches of a pipeline state is"):
        pipe.load_state_dict(edited)
    assert pipe.state.slots is slots
    assert pipe.state.step == 0


@pytest.mark.parametrize("accumulate", [None, tg.Accumulate(None, window_weight=8), tg.Accumulate(1)])
def test_a_state_with_a_number_that_this_plan_cannot_make_is_refused_and_changes_nothing(accumulate, tmp_path):
    _, set_to_two = made()
    set_to_two.set_micro_batches(2)
    set_to_two.save(tmp_path)
    _, pipe = made(tg.Plan(accumulate, compress=PLAN.compress))
    slots = pipe.state.slots
    with pytest.raises(tg.StateMismatchError, match="micro_batches of a pipeline state is not one for this plan"):
        pipe.load(tmp_path)
    assert pipe.state.slots is slots


@pytest.mark.parametrize(
    ("plan", "number", "text"),
    [
        (PLAN, 0, "micro_batches=0 must be at least 1"),
        (PLAN, 2.0, "micro_batches=2.0 must be an integer; write micro_batches=2"),
        (PLAN, True, "must be an integer"),
        (tg.Plan(), 2, r"the plan does not accumulate. Attach it with Accumulate\(micro_batches=2\)"),
        (tg.Plan(clip=tg.clip.GlobalNorm(1.0)), 2, "the plan does not accumulate"),
        (tg.Plan(tg.Accumulate(None, window_weight=8)), 2, r"filled by weight \(window_weight=8\)"),
        (tg.Plan(tg.Accumulate(1)), 2, r"never has more than one.*Accumulate\(micro_batches=2\), and set 1 before"),
    ],
)
def test_what_cannot_be_set_is_named(plan, number, text):
    model, pipe = made(plan)
    with pytest.raises(tg.ConfigError, match=text):
        pipe.set_micro_batches(number)
    assert train(model, pipe)


def test_it_is_refused_inside_of_a_window():
    model, pipe = made()
    next(windows(model, pipe))
    with pytest.raises(tg.UsageError, match="previous window has no step"):
        pipe.set_micro_batches(2)


RANK_PLANS = {
    "plain": tg.Plan(tg.Accumulate(4)),
    "batch": tg.Plan(tg.Accumulate(4, fetch="batch")),
    "every": tg.Plan(tg.Accumulate(4, sync="every")),
    "compressed": tg.Plan(tg.Accumulate(4), tg.Compress(tg.codecs.Cast("float16"))),
    "overlapped": tg.Plan(tg.Accumulate(4), tg.Compress(tg.codecs.Cast("float16"), overlap="backward")),
}


def rank_body(kind, name, numbers):
    rank = torch.distributed.get_rank()
    model = wrap(small_model(), kind)
    collective = tg.collectives.TorchCollective() if kind == "plain" else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, RANK_PLANS[name], collective=collective)
    loader = LOADER[rank::2]
    train(model, pipe, loader[:4])
    pipe.set_micro_batches(numbers[rank])
    with pytest.raises(tg.UsageError, match=r"2 on rank 0, \d on rank 1.*set the same number on every rank"):
        train(model, pipe, loader)
    pipe.abandon()
    pipe.set_micro_batches(2)
    return train(model, pipe, loader)


CASES = [("plain", "plain"), ("ddp", "plain"), ("ddp", "batch"), ("ddp", "every"), ("ddp", "compressed")]
CASES += [("ddp", "overlapped"), ("fsdp2", "plain"), ("fsdp2", "batch")]


@pytest.mark.parametrize(("case", "numbers"), in_turn(CASES, [(2, 3), (2, 1)]))
def test_ranks_that_set_different_numbers_are_told_on_every_rank(case, numbers):
    for found in run_ranks(2, rank_body, *case, numbers):
        assert found == [2] * 4
