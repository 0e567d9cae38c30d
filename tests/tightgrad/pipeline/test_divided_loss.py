"""A loss that the loop divides by the number of micro-batches, as loops by hand do, is told; other divisors are not."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg
from tightgrad.accumulate.loss_graph.division import RanksCheck
from tightgrad.collectives import run_threaded

K = 4
torch.manual_seed(0)
MODEL = nn.Linear(6, 3)
X, Y, LABELS = torch.randn(4 * K, 6), torch.randn(4 * K, 3), torch.randint(0, 3, (4 * K,))
BATCHES = list(zip(X.split(4), Y.split(4), LABELS.split(4), strict=True))

SIX = BATCHES + BATCHES[:2]


def warned(loss_of, k=K, batches=BATCHES, losses=("loss",)):
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    accumulate = k if isinstance(k, tg.Accumulate) else tg.Accumulate(k, losses=losses)
    weight = None if losses == ("loss",) else lambda batch: dict.fromkeys(losses, 4.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=accumulate), weight=weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for window in pipe.windows(batches):
            for x, y, labels in window:
                pipe.backward(loss_of(model(x), y, labels))
            pipe.step()
    return [str(one.message) for one in caught if "the number of micro-batches in a window" in str(one.message)]


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda out, y, labels: F.cross_entropy(out, labels) / K,
        lambda out, y, labels: F.mse_loss(out, y) / K,
        lambda out, y, labels: (out - y).square().mean() / float(K),
        lambda out, y, labels: F.binary_cross_entropy_with_logits(out, y.sigmoid().detach()) / torch.tensor(K),
        lambda out, y, labels: F.cross_entropy(out.bfloat16(), labels).float() / K,
        lambda out, y, labels: F.cross_entropy(out, labels).mul_(1 / K),
        lambda out, y, labels: 1 / K * F.cross_entropy(out, labels),
        lambda out, y, labels: F.cross_entropy(out, labels) * torch.tensor(1 / K, dtype=torch.bfloat16),
        lambda out, y, labels: torch.div(F.l1_loss(out, y), K).clone(),
        lambda out, y, labels: F.mse_loss(out, y) / 2 / (K // 2),
        lambda out, y, labels: F.mse_loss(out, y) / K * 1024,
        lambda out, y, labels: F.mse_loss(out, y) / K / K * K,  # by hand, and by a framework whose division is undone
        lambda out, y, labels: 1024 * F.cross_entropy(out, labels) * (1 / K),
        lambda out, y, labels: F.cross_entropy(out, labels, label_smoothing=0.1) / K,
        lambda out, y, labels: (F.cross_entropy(out, labels) + 0.01 * out.exp().mean()) / K,
        lambda out, y, labels: F.cross_entropy(out, labels) / K + 0.5 * F.l1_loss(out, y) / K,
        lambda out, y, labels: F.cross_entropy(out, labels, reduction="none")[:3].sum() / torch.tensor(3) / K,
        lambda out, y, labels: -(out.log_softmax(1)[:, 0] * y[:, 0]).mean() / K,
    ],
)
def test_a_mean_divided_by_the_number_of_micro_batches(loss_of):
    (text,) = warned(loss_of)
    assert "the loss is divided by 4" in text
    assert "4 times too small: give pipe.backward (or pipe.run) the micro-batch's own loss" in text


def tempered(out, y, labels):
    log_p, q = (out / K).log_softmax(1), (y / K).softmax(1)
    return F.kl_div(log_p, q, reduction="batchmean") * K * K


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda out, y, labels: F.cross_entropy(out, labels),
        lambda out, y, labels: F.cross_entropy(out / K, labels),
        lambda out, y, labels: F.cross_entropy(out, labels) / K * K,
        lambda out, y, labels: 0.5 * F.cross_entropy(out, labels) / K * K,
        lambda out, y, labels: F.cross_entropy(out, labels, label_smoothing=1 / K),
        lambda out, y, labels: F.cross_entropy(out, labels, reduction="sum") / len(labels),
        lambda out, y, labels: (out - y).square().sum() / len(y),
        lambda out, y, labels: F.mse_loss(out, y) * (1 / K),
        lambda out, y, labels: (F.mse_loss(out, y) + F.cross_entropy(out, labels)) / K,
        lambda out, y, labels: sum(F.mse_loss(out, y * i) for i in range(K)) / K,
        lambda out, y, labels: F.cross_entropy(out, labels) / 2,
        tempered,
        lambda out, y, labels: 0.25 * (out - y).square().sum(1).mean(),
        lambda out, y, labels: 0.25 * ((1 - out.sigmoid()) ** 2 * F.softplus(-out)).mean(),  # focal, alpha = 1 / K
        lambda out, y, labels: sum(F.cross_entropy(out * i, labels) for i in range(K)) / K,
        lambda out, y, labels: sum(F.cross_entropy(out * i, labels, label_smoothing=0.1) for i in range(K)) / K,
        lambda out, y, labels: 1 / K * F.cross_entropy(out, labels) + (1 - 1 / K) * F.l1_loss(out, y),
        lambda out, y, labels: F.cross_entropy(out, labels) * (1 + out.mean().sigmoid()),
        lambda out, y, labels: F.cross_entropy(out, y.softmax(1)),  # divided by the number of samples, which is K
        lambda out, y, labels: F.nll_loss(out.log_softmax(1), labels, reduction="sum") / K,
        lambda out, y, labels: (F.l1_loss(out, y, reduction="sum") + out.square().sum()) / len(y),
        lambda out, y, labels: F.smooth_l1_loss(out, y, reduction="sum") / len(y) / 3,
    ],
)
def test_other_divisors_are_left_alone(loss_of):
    assert warned(loss_of) == []


@pytest.mark.parametrize("k", [1, 2])
def test_a_half_is_common_and_not_told(k):
    assert warned(lambda out, y, labels: F.mse_loss(out, y) / k, k=k) == []


HALF_ON_PURPOSE = [
    lambda out, y, labels: 0.5 * F.cross_entropy(out, labels),
    lambda out, y, labels: 0.5 * F.mse_loss(out, y),
    lambda out, y, labels: (out - y).pow(2).mean() / 2,
    lambda out, y, labels: (lambda apart: (apart * apart).sum() / 4 / 2)(out - y),
    lambda out, y, labels: (F.cross_entropy(out, labels) + F.l1_loss(out, y)) / 2,
    lambda out, y, labels: (F.cross_entropy(out, labels) + F.cross_entropy(-out, labels) + F.l1_loss(out, y)) / 2,
    lambda out, y, labels: torch.stack([F.cross_entropy(out, labels), F.l1_loss(out, y)]).sum() / 2,
]


@pytest.mark.parametrize("loss_of", HALF_ON_PURPOSE)
def test_a_half_that_is_part_of_the_loss(loss_of):
    assert warned(loss_of, k=2) == []


@pytest.mark.parametrize("loss_of", [lambda out, y, labels: F.cross_entropy(out, labels).div_(2)])
def test_half_of_one_mean_without_squares_is_told(loss_of):
    (text,) = warned(loss_of, k=2)
    assert "the loss is divided by 2" in text
    assert "part of the loss itself, ignore" in text


def test_the_number_is_that_of_the_window():
    """Of a schedule, of a loader that is shorter than a window, and of windows by weight."""
    for accumulate, k in [
        (tg.Accumulate(((0, 2), (1, 5))), 2),
        (tg.Accumulate(5, fetch="window"), 4),
        (tg.Accumulate(None, window_weight=12), 3),
    ]:
        assert len(warned(lambda out, y, labels, k=k: F.cross_entropy(out, labels) / k, accumulate)) == 1


def test_a_warm_up_to_accumulation_is_looked_at_where_it_begins():
    divisors = iter([1, 1, 2, 2])
    accumulate = tg.Accumulate(((0, 1), (2, 2)))
    assert len(warned(lambda out, y, labels: F.cross_entropy(out, labels) / next(divisors), accumulate)) == 1


def test_one_of_several_losses_may_count_a_share():
    names = ("a", "b")
    share = lambda out, y, labels: {"a": F.cross_entropy(out, labels), "b": F.l1_loss(out, y) / K}  # noqa: E731
    both = lambda *batch: {name: loss / (K if name == "a" else 1) for name, loss in share(*batch).items()}  # noqa: E731
    assert warned(share, losses=names) == []
    assert len(warned(both, losses=names)) == 1


def test_one_look_is_not_enough():
    divisors = iter([K, 1, 1, 1])
    assert warned(lambda out, y, labels: F.mse_loss(out, y) / next(divisors)) == []


FOLLOWING = [
    lambda out, y, k: F.mse_loss(out, y) * (1 / k),
    lambda out, y, k: 0.5 * F.mse_loss(out, y) * (1 / k),
    lambda out, y, k: 1 / k * (out - y).square().sum(1).mean(),
    lambda out, y, k: (F.mse_loss(out, y) + 0.1 * out.square().mean()) / k,
    lambda out, y, k: sum(F.mse_loss(out[:, i], y[:, i]) for i in range(2)) / k,
    lambda out, y, k: (out - y).square().sum() / len(y) / k,
]


@pytest.mark.parametrize("loss_of", FOLLOWING)
def test_a_factor_that_follows_the_window_is_told_whatever_the_loss_is(loss_of):
    """The loader's last window is shorter; a schedule changes K."""
    short = iter([4, 4, 4, 4, 2, 2])
    (text,) = warned(lambda out, y, labels: loss_of(out, y, next(short)), tg.Accumulate(4, fetch="window"), SIX)
    assert "divided by 2, the number of micro-batches" in text
    longer = iter([2, 2, 4, 4, 4, 4])
    assert len(warned(lambda out, y, labels: loss_of(out, y, next(longer)), tg.Accumulate(((0, 2), (1, 4))), SIX)) == 1


@pytest.mark.parametrize("constant", [2, 4])
@pytest.mark.parametrize("loss_of", FOLLOWING)
def test_a_factor_that_stays_is_not(loss_of, constant):
    assert warned(lambda out, y, labels: loss_of(out, y, constant), tg.Accumulate(4, fetch="window"), SIX) == []
    assert warned(lambda out, y, labels: loss_of(out, y, constant), tg.Accumulate(((0, 2), (1, 4))), SIX) == []


def test_what_a_function_given_to_run_returns():
    model = nn.Linear(6, 3)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(accumulate=tg.Accumulate(K)))
    window = next(iter(pipe.windows(BATCHES)))
    with pytest.warns(tg.TightGradWarning, match="the loss is divided by 4, the number of micro-batches"):
        pipe.run(window, lambda batch: F.cross_entropy(model(batch[0]), batch[2]) / K)


RANKS = 3
BY_RANKS = {
    f"divided by {RANKS}, the number of ranks": [
        lambda out, y, labels: F.mse_loss(out, y) / RANKS,
        lambda out, y, labels: F.cross_entropy(out, labels) * (1 / RANKS),
        lambda out, y, labels: (F.cross_entropy(out, labels) / torch.tensor(RANKS)).clone(),
    ],
    f"divided by {RANKS * K}, the number of micro-batches on all ranks": [
        lambda out, y, labels: F.mse_loss(out, y) / (RANKS * K),
        lambda out, y, labels: F.cross_entropy(out, labels) / K / RANKS,
    ],
    f"multiplied with {RANKS}, the number of ranks": [
        lambda out, y, labels: RANKS * F.mse_loss(out, y),
        lambda out, y, labels: F.cross_entropy(out, labels) * torch.tensor(float(RANKS)),
    ],
}


def looked_at(loss_of, ranks=RANKS):
    """What is found in each of four micro-batches."""
    model, check = nn.Linear(6, 3), RanksCheck(ranks)
    return [check.scaled([loss_of(model(x), y, labels)], K) for x, y, labels in BATCHES[:4]]


@pytest.mark.parametrize(("said", "loss_of"), [(said, one) for said, losses in BY_RANKS.items() for one in losses])
def test_a_mean_scaled_by_the_number_of_ranks(said, loss_of):
    first, second, *later = looked_at(loss_of)
    assert (first, second[0], later) == (None, said, [None, None])


@pytest.mark.parametrize(
    ("loss_of", "ranks"),
    [
        (lambda out, y, labels: F.mse_loss(out, y), 3),
        (lambda out, y, labels: F.mse_loss(out, y) / 2, 2),
        (lambda out, y, labels: 2 * F.mse_loss(out, y), 2),
        (lambda out, y, labels: F.cross_entropy(out, labels) / 3, 1),
        (lambda out, y, labels: 3 * F.mse_loss(out, y) + F.l1_loss(out, y), 3),
        (lambda out, y, labels: F.mse_loss(out, y) * 3 / 3, 3),
    ],
)
def test_other_factors_are_no_number_of_ranks(loss_of, ranks):
    assert looked_at(loss_of, ranks) == [None] * 4


def divides_by_ranks(ranks):
    model = MODEL if ranks.rank == 0 else copy.deepcopy(MODEL)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(tg.Accumulate(2)), collective=ranks)
    for window in pipe.windows(BATCHES):
        for x, _, labels in window:
            pipe.backward(F.cross_entropy(model(x), labels) / ranks.world_size)
        pipe.step()


def test_it_is_told_on_rank_0():
    with pytest.warns(tg.TightGradWarning, match="divided by 3, the number of ranks.*0.333 times") as caught:
        run_threaded(3, divides_by_ranks)
    assert [one.filename for one in caught] == [__file__]
