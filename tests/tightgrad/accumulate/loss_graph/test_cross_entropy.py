"""Cross entropy of each sample's scores with every other is known by its graph, and nothing else is taken for it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tightgrad.accumulate.loss_graph.cross_entropy import compares_samples

N = 6
torch.manual_seed(0)
FIRST, SECOND, HEAD = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, N, bias=False)
X, Y, TARGET = torch.randn(N, 8), torch.randn(N, 8), torch.arange(N)
OTHER_VIEW, EYE = (TARGET + N // 2) % N, torch.eye(N, dtype=torch.bool)
TEMPERATURE = nn.Parameter(torch.tensor(0.1))


def scores(one=FIRST, other=SECOND):
    return F.normalize(one(X), dim=-1) @ F.normalize(other(Y), dim=-1).T


def both_ways():
    product = TEMPERATURE.exp() * scores()
    return (F.cross_entropy(product, TARGET) + F.cross_entropy(product.T, TARGET)) / 2


def own():
    """Scores of each view with every other, and with itself."""
    views = F.normalize(FIRST(X), dim=-1)
    return views @ views.T / 0.5


def in_place(product):
    product.fill_diagonal_(-1e9)
    return product


def positives_first(product):
    pairs = torch.roll(torch.eye(N, dtype=torch.bool), N // 2, 1)
    logits = torch.cat([product[pairs].view(N, 1), product[~(pairs | EYE)].view(N, N - 2)], dim=1)
    return F.cross_entropy(logits / 0.1, torch.zeros(N, dtype=torch.long))


def moco():
    queries, keys, queue = FIRST(X), SECOND(Y).detach(), torch.randn(4, 9)
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue], dim=1)
    return F.cross_entropy(logits, torch.zeros(N, dtype=torch.long))


def autocast(make):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return make()


COMPARES = {
    "infonce": lambda: F.cross_entropy(scores() / 0.1, TARGET),
    "clip": both_ways,
    "scaled and more": lambda: 0.5 * F.cross_entropy(scores(), TARGET) + FIRST(X).square().mean(),
    "one tower is frozen": lambda: F.cross_entropy(FIRST(X) @ SECOND(Y).detach().T, TARGET),
    "nll of log_softmax": lambda: F.nll_loss(scores().log_softmax(1), TARGET),
    "autocast": lambda: autocast(lambda: F.cross_entropy(FIRST(X) @ SECOND(Y).T, TARGET)),
    "nt-xent, masked_fill": lambda: F.cross_entropy(own().masked_fill(EYE, float("-inf")), OTHER_VIEW),
    "nt-xent, in place": lambda: F.cross_entropy(in_place(own()), OTHER_VIEW),
    "nt-xent, where": lambda: F.cross_entropy(torch.where(EYE, torch.tensor(-1e9), own()), OTHER_VIEW),
    "nt-xent, subtracted": lambda: F.cross_entropy(own() - 1e9 * EYE, OTHER_VIEW),
    "nt-xent, neighbours": lambda: F.cross_entropy(own().masked_fill(EYE, float("-inf")), TARGET ^ 1),
    "nt-xent, without the diagonal": lambda: F.cross_entropy(own()[~EYE].view(N, N - 1) / 0.1, OTHER_VIEW % (N - 1)),
    "nt-xent, positives first": lambda: positives_first(own()),
    "nt-xent, normalised twice": lambda: F.cross_entropy(scores(FIRST, FIRST).masked_fill(EYE, -1e9), OTHER_VIEW),
    "a mean over several": lambda: torch.stack([F.cross_entropy(scores(), TARGET), FIRST(X).mean()]).mean(),
    "a sum": lambda: F.cross_entropy(scores(), TARGET, reduction="sum") / N,
}
DOES_NOT = {
    "a head": lambda: F.cross_entropy(HEAD(X), TARGET),
    "a head with bias": lambda: F.cross_entropy(nn.Linear(8, N)(X), TARGET),
    "a head under autocast": lambda: autocast(lambda: F.cross_entropy(HEAD(X), TARGET)),
    "tied embeddings": lambda: F.cross_entropy(FIRST(X) @ nn.Parameter(torch.randn(N, 4)).T, TARGET),
    "other targets": lambda: F.cross_entropy(scores(), TARGET.flip(0)),
    "a queue of constants": moco,
    "views of others' scores with a head": lambda: F.cross_entropy(HEAD(X), OTHER_VIEW),
    "labels of a hyper-network": lambda: F.cross_entropy(FIRST(X) @ SECOND(Y).T, torch.tensor([1, 1, 0, 2, 5, 4])),
    "two samples": lambda: F.cross_entropy(scores()[:2, :2], TARGET[:2]),
    "a regression": lambda: F.mse_loss(FIRST(X), SECOND(Y)),
    "checkpointed": lambda: checkpoint(lambda x: F.cross_entropy(HEAD(x), TARGET), X, use_reentrant=False),
}


@pytest.mark.parametrize("name", COMPARES)
def test_a_loss_over_all_pairs(name):
    assert compares_samples(COMPARES[name]())


@pytest.mark.parametrize("name", DOES_NOT)
def test_other_losses(name):
    loss = DOES_NOT[name]()
    assert not compares_samples(loss)
    loss.backward()
