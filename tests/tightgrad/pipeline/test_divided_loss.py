"""A loss that the loop divides by the number of micro-batches, as loops by hand do, is told; other divisors are not."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg

K = 4
torch.manual_seed(0)
X, Y, LABELS = torch.randn(4 * K, 6), torch.randn(4 * K, 3), torch.randint(0, 3, (4 * K,))
BATCHES = list(zip(X.split(4), Y.split(4), LABELS.split(4), strict=True))


def warned(loss_of, k=K, batches=BATCHES):
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(accumulate=tg.Accumulate(k)))
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
    ],
)
def test_a_mean_divided_by_the_number_of_micro_batches(loss_of):
    (text,) = warned(loss_of)
    assert "a mean divided by 4" in text
    assert "4 times too small: write pipe.backward(loss)" in text


def tempered(out, y, labels):
    log_p, q = (out / K).log_softmax(1), (y / K).softmax(1)
    return F.kl_div(log_p, q, reduction="batchmean") * K * K


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda out, y, labels: F.cross_entropy(out, labels),
        lambda out, y, labels: F.cross_entropy(out / K, labels),
        lambda out, y, labels: F.cross_entropy(out, labels, label_smoothing=1 / K),
        lambda out, y, labels: F.cross_entropy(out, labels, reduction="sum") / len(labels),
        lambda out, y, labels: (out - y).square().sum() / len(y),
        lambda out, y, labels: F.mse_loss(out, y) * (1 / K),
        lambda out, y, labels: (F.mse_loss(out, y) + F.cross_entropy(out, labels)) / K,
        lambda out, y, labels: sum(F.mse_loss(out, y * i) for i in range(K)) / K,
        lambda out, y, labels: F.cross_entropy(out, labels) / 2,
        tempered,
    ],
)
def test_other_divisors_are_left_alone(loss_of):
    assert warned(loss_of) == []


@pytest.mark.parametrize("k", [1, 2])
def test_a_half_is_common_and_not_told(k):
    assert warned(lambda out, y, labels: F.mse_loss(out, y) / k, k=k) == []


def test_one_look_is_not_enough():
    divisors = iter([K, 1, 1, 1])
    assert warned(lambda out, y, labels: F.mse_loss(out, y) / next(divisors)) == []
