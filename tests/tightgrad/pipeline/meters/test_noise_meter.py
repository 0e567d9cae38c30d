"""The noise scale in the records is the one of the micro-batches' own gradients, computed apart."""

import copy

import pytest
import torch
from torch.amp import GradScaler

import tightgrad as tg
from support.training import batches, linear, loss_of, on_ranks, train
from tightgrad.scaling import NoiseScale, estimate_noise, small_batch_mean

K, SIZES = 3, (4, 2, 7, 3, 5, 1)
NOISE = NoiseScale(decay=0.5)


def ragged(rank=0):
    return [batches(1, 10 * rank + index, size)[0] for index, size in enumerate(SIZES)]


def square_of_gradient(model, batch):
    model = copy.deepcopy(model).double()
    loss_of(model, batch.double()).backward()
    return float(sum(p.grad.square().sum() for p in model.parameters()))


def expected(model, everyone):
    """One value for each window, with weights that do not move."""
    state, values = NOISE.initial(), []
    for start in range(0, len(SIZES), K):
        window = [batch for loader in everyone for batch in loader[start : start + K]]
        total = sum(map(len, window))
        squares = sum(len(batch) * square_of_gradient(model, batch) for batch in window)
        small = small_batch_mean(squares, total, len(window))
        big = square_of_gradient(model, torch.cat(window))
        state = NOISE.updated(state, estimate_noise(*small, big, total))
        values.append(float(NOISE.value(state)))
    return values


def measure(collective=None, loader=None, scaler=None, **parts):
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(K), noise_scale=NOISE, **parts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pipe = tg.attach(model, optimizer, plan, collective=collective, scaler=scaler)
    return [record.noise_scale for record in train(pipe, model, ragged() if loader is None else loader)], pipe


@pytest.mark.parametrize(
    ("parts", "scaler"),
    [
        ({}, None),
        ({"clip": tg.clip.GlobalNorm(1e-3)}, None),
        ({"loss_scale": tg.LossScale(1024.0)}, None),
        ({}, GradScaler("cpu", init_scale=1024.0)),
    ],
)
def test_one_device(parts, scaler):
    values, _ = measure(scaler=scaler, **parts)
    assert values == pytest.approx(expected(linear(), [ragged()]), rel=1e-4)


@pytest.mark.parametrize("compress", [None, tg.Compress()])
def test_every_rank_has_the_same_of_all_micro_batches(compress):
    ranks = on_ranks(3, lambda collective: measure(collective, ragged(collective.rank), compress=compress)[0])
    assert ranks[0] == pytest.approx(expected(linear(), [ragged(rank) for rank in range(3)]), rel=1e-4)
    assert ranks[1] == ranks[0]
    assert ranks[2] == ranks[0]


def test_off_it_leaves_no_trace():
    model = linear()
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), tg.Plan(accumulate=tg.Accumulate(K)))
    records = train(pipe, model, ragged())
    assert [record.noise_scale for record in records] == [None, None]
    assert pipe.state_dict()["slots"] == {}


def test_a_window_of_one_small_batch_tells_nothing():
    values, pipe = measure(loader=ragged()[:1])
    assert values == [None]
    assert torch.equal(pipe.state_dict()["slots"]["noise_scale"]["*"], torch.zeros(3, dtype=torch.float64))


def test_a_skipped_step_is_not_learned_from():
    loader = [batch.clone() for batch in ragged()]
    loader[4][0] = torch.nan
    values, _ = measure(loader=loader, guard=tg.Guard("skip"))
    assert values[1] == values[0]
    assert values[0] == pytest.approx(expected(linear(), [ragged()])[0], rel=1e-4)


def test_padding_counts_nowhere():
    padded = ragged()
    padded.insert(1, torch.zeros(0, 3))
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(K + 1), noise_scale=NOISE)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan)
    (record,) = train(pipe, model, padded[: K + 1])
    assert record.noise_scale == pytest.approx(expected(linear(), [ragged()])[0], rel=1e-4)


def test_it_is_saved_and_goes_on(tmp_path):
    values, _ = measure()
    _, pipe = measure(loader=ragged()[:K])
    pipe.save(tmp_path)
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(K), noise_scale=NOISE)
    resumed = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan)
    resumed.load(tmp_path)
    (record,) = train(resumed, model, ragged()[K:])
    assert record.noise_scale == values[1]


def test_a_window_taken_up_in_its_middle_is_left_out():
    """Its first micro-batches were watched by another process."""
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(K), noise_scale=NOISE)
    stopped = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan)
    for batch in next(stopped.windows(ragged())):
        stopped.backward(loss_of(model, batch))
        break
    resumed = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan)
    resumed.load_state_dict(stopped.state_dict())
    first, second = train(resumed, model, ragged())
    assert first.noise_scale is None
    assert second.noise_scale is not None


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"compress": tg.Compress(tg.codecs.TopK(0.1))}, "noise_scale needs"),
        ({"accumulate": tg.Accumulate(2, losses=("a", "b"))}, "several losses"),
    ],
)
def test_plans_that_cannot_measure_it_are_refused(parts, words):
    with pytest.raises(tg.IncompatiblePlanError, match=words):
        tg.Plan(noise_scale=NOISE, **parts)


def test_plan_round_trip():
    plan = tg.Plan(noise_scale=NOISE)
    assert tg.Plan.from_json(plan.to_json()) == plan
