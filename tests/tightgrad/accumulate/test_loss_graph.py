"""What a loss's graph shows: products of samples with one another are seen, layers of the same shapes are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tightgrad.accumulate.loss_graph import divided_by, mixes_samples, normalises_batch

SIZE = 8  # of the batch, and of layers, on purpose
torch.manual_seed(0)
BATCH = torch.randn(SIZE, 16)
TOKENS = torch.randn(SIZE, SIZE, 16)
MODEL = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, SIZE))
FROZEN = nn.Linear(16, SIZE).requires_grad_(False)
EMBEDDING = nn.Embedding(SIZE, 16)


def pairs(scores):
    return F.cross_entropy(scores, torch.arange(len(scores)))


def two():
    return F.normalize(MODEL(BATCH)), F.normalize(MODEL(BATCH + 0.1))


def views():
    both = torch.cat(two())
    return pairs(both @ both.T)


def barlow():
    first, second = (MODEL[1](MODEL[0](BATCH + shift)) for shift in (0.0, 0.1))
    return (first.T @ second / SIZE).square().sum()


MIXING = {
    "InfoNCE": lambda: pairs(two()[0] @ two()[1].T / 0.1),
    "one with several positives": views,
    "written with linear": lambda: pairs(F.linear(*two())),
    "written with einsum": lambda: pairs(torch.einsum("nd,md->nm", *two())),
    "a learnt temperature": lambda: pairs(two()[0] @ two()[1].T * nn.Parameter(torch.ones(()))),
    "distances": lambda: torch.cdist(*two()).mean(),
    "cross-correlation of features": barlow,
}
APART = {
    "a layer as wide as the batch": lambda: pairs(MODEL(BATCH)),
    "a frozen layer of that width": lambda: pairs(FROZEN(MODEL[0](BATCH)[:, :16])),
    "an embedding that is used as a head": lambda: pairs(MODEL[0](BATCH)[:, :16] @ EMBEDDING.weight.T),
    "attention over as many tokens": lambda: nn.TransformerEncoderLayer(16, 2, 8, batch_first=True)(TOKENS).mean(),
    "a recurrent layer": lambda: nn.LSTM(16, SIZE, batch_first=True)(TOKENS)[0].mean(),
    "bilinear": lambda: nn.Bilinear(16, 16, SIZE)(BATCH, BATCH).mean(),
    "distances within pairs": lambda: F.pairwise_distance(*two()).mean(),
    "no graph": lambda: torch.zeros(()),
}


@pytest.mark.parametrize("name", MIXING)
def test_samples_that_meet_are_seen(name):
    assert f"{SIZE} samples" in mixes_samples(MIXING[name](), SIZE)


@pytest.mark.parametrize("name", APART)
def test_samples_that_do_not_are_left_alone(name):
    assert mixes_samples(APART[name](), SIZE) is None


def test_statistics_of_the_batch():
    assert normalises_batch(pairs(F.batch_norm(MODEL(BATCH), None, None, training=True)))
    frozen = nn.BatchNorm1d(SIZE).eval()
    assert not normalises_batch(pairs(frozen(MODEL(BATCH))))
    assert not normalises_batch(pairs(nn.LayerNorm(SIZE)(MODEL(BATCH))))


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda loss: loss / 4, 4.0),
        (lambda loss: loss * 0.25, 4.0),
        (lambda loss: loss / torch.tensor(4.0), 4.0),
        (lambda loss: loss / 2, 2.0),
        (lambda loss: loss, None),
        (lambda loss: (loss + loss) / 2, None),
        (lambda loss: 0.5 * loss, None),
        (lambda loss: loss / nn.Parameter(torch.tensor(4.0)), None),
        (lambda loss: loss / 4 + 1, None),
        (lambda loss: torch.zeros(()) / 4, None),
    ],
)
def test_the_last_division(change, number):
    assert divided_by(change(pairs(MODEL(BATCH)))) == number
