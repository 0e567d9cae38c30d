"""A sum over the samples under loss_reduction="mean" is told, and so is a mean under "sum"; nothing else is."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import distributions, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import tightgrad as tg
from support.in_turn import in_turn
from support.ranks import run_ranks
from tightgrad.accumulate.loss_graph.over_samples import over_samples
from tightgrad.accumulate.loss_graph.terms import terms
from tightgrad.core.notices import TightGradWarning

SEED = torch.Generator().manual_seed(0)
X, T, LABELS = torch.randn(18, 6, generator=SEED), torch.rand(18, 4, generator=SEED), torch.arange(18) * 7 % 4
EQUAL, RAGGED = (4, 4, 4, 4), (4, 5, 3, 6)
SHARES = torch.rand(6, generator=SEED)
PRIOR, NOISE = torch.full((4,), 0.25), torch.randn(6, 4, generator=SEED)


def loader(sizes=EQUAL):
    total = sum(sizes)
    return list(zip(X[:total].split(sizes), T[:total].split(sizes), LABELS[:total].split(sizes), strict=True))


class Model(nn.Module):
    """As many features as samples, so that sizes alone do not tell them apart."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.table = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.head(self.body(x).relu())


def told(loss_of, batches=None, weight=None, windows=1, make=Model, **settings):
    """What is said of a loss of the model, its outputs, targets and labels."""
    torch.manual_seed(0)
    model = make()
    plan = tg.Plan(accumulate=tg.Accumulate(4, **settings))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan, weight=weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for window in pipe.windows((batches or loader()) * windows):
            for x, t, labels in window:
                pipe.backward(loss_of(model, model(x), t, labels))
            pipe.step()
    assert all(one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught if one.category is TightGradWarning]


def of(reduce):
    return lambda model, out, t, labels: reduce(out, t)


def vae(model, out, t, labels):
    mean, log_variance = out.chunk(2, dim=1)
    latent = mean + NOISE[: len(out), :2] * (0.5 * log_variance).exp()
    kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return F.binary_cross_entropy(model.head(latent.repeat(1, 4)).sigmoid(), t, reduction="sum") + kl


def normal(model, out, t, labels):
    return distributions.Normal(out, 1.0).log_prob(t).sum().neg()


WRONG = {
    "vae": vae,
    "vae, weighted": lambda model, out, t, labels: vae(model, out, t, labels) * 2,
    "mse": of(lambda out, t: F.mse_loss(out, t, reduction="sum")),
    "l1": of(lambda out, t: F.l1_loss(out, t, reduction="sum")),
    "huber": of(lambda out, t: F.huber_loss(out, t, reduction="sum")),
    "smooth l1": of(lambda out, t: F.smooth_l1_loss(out, t, reduction="sum")),
    "bce with logits": of(lambda out, t: F.binary_cross_entropy_with_logits(out, t, reduction="sum")),
    "kl": of(lambda out, t: F.kl_div(out.log_softmax(1), t.softmax(1), reduction="sum")),
    "nll and a penalty": lambda m, out, t, y: (
        F.nll_loss(out.log_softmax(1), y, reduction="sum") + 1e-2 * m.table.norm()
    ),
    "cross entropy, smoothed": lambda m, out, t, y: F.cross_entropy(out, y, label_smoothing=0.1, reduction="sum"),
    "cross entropy of probabilities": of(lambda out, t: F.cross_entropy(out, t.softmax(1), reduction="sum")),
    "gaussian nll": of(lambda out, t: F.gaussian_nll_loss(out, t, out.exp(), reduction="sum")),
    "poisson nll": of(lambda out, t: F.poisson_nll_loss(out, t, reduction="sum")),
    "triplets": of(lambda out, t: F.triplet_margin_loss(out, t, -t, reduction="sum")),
    "squares by hand": of(lambda out, t: ((out - t) ** 2).sum()),
    "half of squares by hand": of(lambda out, t: 0.5 * ((out - t) ** 2).sum()),
    "twice, in place": of(lambda out, t: (out - t).square().sum().mul_(2)),
    "in float64": of(lambda out, t: (out - t).square().double().sum()),
    "sums of sums": of(lambda out, t: (out - t).abs().sum(1).sum()),
    "the other way": of(lambda out, t: (out - t).abs().sum(0).sum()),
    "summed over samples, averaged over features": of(lambda out, t: (out - t).abs().sum(0).mean()),
    "averaged over features": of(lambda out, t: (out - t).square().mean(1).sum()),
    "both dimensions": of(lambda out, t: (out - t).square().sum((0, 1))),
    "the mean of a sum": of(lambda out, t: torch.mean((out - t).square().sum())),
    "a vector of losses": lambda m, out, t, y: F.cross_entropy(out, y, reduction="none").sum(),
    "gathered": lambda m, out, t, y: -out.log_softmax(-1).gather(1, y[:, None]).sum(),
    "indexed": lambda m, out, t, y: -out.log_softmax(1)[torch.arange(len(y)), y].sum(),
    "a likelihood": normal,
    "a categorical likelihood": lambda m, out, t, y: -distributions.Categorical(logits=out).log_prob(y).sum(),
    "and a mean of parameters": lambda m, out, t, y: (out - t).square().sum() + 0.1 * m.table.square().mean(),
    "and a sum of parameters": lambda m, out, t, y: (
        sum(p.square().sum() for p in m.parameters()) + (out - t).abs().sum()
    ),
    "beside a mean": of(lambda out, t: F.mse_loss(out, t) + out.abs().sum()),
    "a mask of ones": of(lambda out, t: (torch.ones(len(t), 1) * (out - t).square()).sum()),
    "checkpointed layers": lambda m, out, t, y: (
        (checkpoint(m.head, out.repeat(1, 2), use_reentrant=False) - t).abs().sum()
    ),
}


@pytest.mark.parametrize("loss_of", WRONG.values(), ids=WRONG.keys())
def test_a_sum_over_the_samples_is_no_mean(loss_of):
    (text,) = told(loss_of, windows=2)
    assert "is a sum" in text
    assert "that weighs 4" in text
    assert 'Accumulate(loss_reduction="sum")' in text
    assert told(loss_of, windows=2, loss_reduction="sum") == []


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x / len(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / len(grad)


def barlow_twins(model, out, t, labels):
    z = (out - out.mean(0)) / out.std(0)
    c = z.T @ z.roll(1, 0) / len(z)
    return (c.diag() - 1).square().sum() + 0.005 * (c - c.diag().diag()).square().sum()


def infonce_like(model, out, t, labels):
    scores = out @ model.head(t.repeat(1, 2)).T
    return (scores.logsumexp(1) - scores.diag()).mean()


def masked(out, t, labels):
    mask = (labels != 0).float()
    return (F.cross_entropy(out, labels, reduction="none") * mask).sum() / mask.sum()


RIGHT = {
    "mean": of(lambda out, t: F.mse_loss(out, t)),
    "summed over features": of(lambda out, t: (out - t).square().sum(1).mean()),
    "averaged over samples, summed over features": of(lambda out, t: (out - t).square().mean(0).sum()),
    "kl, batchmean": of(lambda out, t: F.kl_div(out.log_softmax(1), t.softmax(1), reduction="batchmean")),
    "divided by hand": of(lambda out, t: (out - t).square().sum() / len(t)),
    "multiplied by hand": of(lambda out, t: (out - t).square().sum() * (1 / len(t))),
    "divided by all elements": of(lambda out, t: F.l1_loss(out, t, reduction="sum") / t.numel()),
    "divided before the sum": of(lambda out, t: ((out - t).square() / len(t)).sum()),
    "divided by roots before squares": of(lambda out, t: ((out - t) / math.sqrt(len(t))).square().sum()),
    "divided by roots, in two": of(lambda out, t: F.mse_loss(out / len(t) ** 0.5, t / len(t) ** 0.5, reduction="sum")),
    "divided by a number that may be any": of(lambda out, t: 0.5 * (out - t).square().sum() / (len(t) - 1)),
    "over a mask": lambda m, out, t, y: masked(out, t, y),
    "over a mask that multiplies": lambda m, out, t, y: (
        (F.l1_loss(out, t, reduction="none").mean(1) * (y > 0)).sum() * (1 / (y > 0).sum())
    ),
    "over what is not ignored": lambda m, out, t, y: (
        F.cross_entropy(out, y, reduction="none", ignore_index=0).sum() / 2
    ),
    "over what is left": lambda m, out, t, y: (out - t).abs().mean(1).masked_fill(y == 0, 0.0).sum() * 0.5,
    "over what is picked": lambda m, out, t, y: (out - t).abs().mean(1)[y > 0].sum() / (y > 0).sum(),
    "over as many as are positive": of(lambda out, t: (out - t).abs().sum() / max(1, (t > 2).sum())),
    "shares": of(lambda out, t: (SHARES[: len(t), None] / SHARES[: len(t)].sum() * (out - t).square()).sum()),
    "shares of roots": of(
        lambda out, t: ((SHARES[: len(t)] / SHARES[: len(t)].sum()).sqrt()[:, None] * (out - t)).square().sum()
    ),
    "equal shares": of(lambda out, t: (torch.full((len(t), 1), 1 / len(t)) * (out - t).square()).sum()),
    "learnt shares": of(lambda out, t: (out[:, 0].softmax(0) * (out - t).square().sum(1)).sum()),
    "learnt shares by hand": of(
        lambda out, t: (out[:, 0].exp() / out[:, 0].exp().sum() * (out - t).square().sum(1)).sum()
    ),
    "a weight of each sample": of(lambda out, t: -(out.log_softmax(1)[:, 0] * t[:, 0]).sum()),
    "a penalty": lambda m, out, t, y: F.mse_loss(out, t) + 1e-2 * sum(p.pow(2).sum() for p in m.parameters()),
    "a heavy penalty": lambda m, out, t, y: F.cross_entropy(out, y) + sum(p.abs().sum() for p in m.parameters()),
    "a penalty of as many rows as samples": lambda m, out, t, y: F.mse_loss(out, t) + m.table.square().sum(),
    "a penalty of products": lambda m, out, t, y: (
        F.mse_loss(out, t) + (m.table @ m.table.T - torch.eye(4)).square().sum()
    ),
    "a distribution over all samples": of(
        lambda out, t: F.kl_div(out.softmax(1).mean(0).log(), PRIOR, reduction="sum")
    ),
    "distance of means": of(lambda out, t: (out.mean(0) - t.mean(0)).square().sum()),
    "distance of means, by torch": of(lambda out, t: F.mse_loss(out.mean(0), t.mean(0), reduction="sum")),
    "distance of summed means": of(lambda out, t: (out.sum(0) / len(out) - t.mean(0)).square().sum()),
    "distance of deviations": of(lambda out, t: (out.std(0) - 1).relu().sum()),
    "barlow twins": barlow_twins,
    "pairs": infonce_like,
    "stacked means": of(lambda out, t: torch.stack([F.l1_loss(out[:, i], t[:, i]) for i in range(4)]).sum()),
    "added means": of(lambda out, t: sum(F.l1_loss(out[:, i], t[:, i]) for i in range(4))),
    "a layer of means": lambda m, out, t, y: F.mse_loss(out, t) + m.head(m.body(X[:4]).mean(0)).square().sum() * 0.1,
    "a custom function": of(lambda out, t: Scaled.apply((out - t).square()).sum()),
    "transposed, then averaged": of(lambda out, t: (out - t).T.square().mean(1).sum()),
    "a product with averages": of(lambda out, t: (out - t).square().sum(1) @ torch.full((len(t),), 1 / len(t))),
    "selected": of(lambda out, t: (out - t)[0].square().sum()),
    "times another loss": of(lambda out, t: (out - t).square().sum() * F.l1_loss(out, t)),
}


@pytest.mark.parametrize(("name", "sizes"), in_turn(RIGHT, [EQUAL, RAGGED]))
def test_what_is_no_sum_over_the_samples(name, sizes):
    assert told(RIGHT[name], loader(sizes), windows=2) == []


NOT_ASKED = {
    "each of weight 1": ((4, 4, 4, 4), lambda batch: 1.0),
    "one sample each": ((1, 1, 1, 1), None),
    "another weight": (EQUAL, lambda batch: 7.0),
    "the whole window": ((4,), None),
}


@pytest.mark.parametrize(("sizes", "weight"), NOT_ASKED.values(), ids=NOT_ASKED.keys())
def test_sums_that_their_weights_make_right_or_unknown(sizes, weight):
    assert told(WRONG["squares by hand"], loader(sizes), weight, fetch="window") == []


@pytest.mark.parametrize(
    "loss_of",
    [
        of(lambda out, t: (out - t).square().sum() / 3),
        of(lambda out, t: 0.01 * F.mse_loss(out, t, reduction="sum")),
        of(lambda out, t: (out - t).square().sum() / 6 + out.abs().mean()),
    ],
)
def test_a_sum_over_a_constant_is_told_where_weights_differ(loss_of):
    (text,) = told(loss_of, loader(RAGGED))
    assert "is divided by" in text
    assert told(loss_of, loader(EQUAL), windows=2) == []


def test_the_number_of_what_a_mask_leaves_may_be_the_weight():
    loss = lambda m, out, t, y: (F.cross_entropy(out, y, reduction="none") * (y > 0)).sum()  # noqa: E731
    (text,) = told(loss, weight=lambda batch: (batch[2] > 0).sum())
    assert "is a sum" in text
    assert told(loss) == []


MEANS = {
    "mse": of(lambda out, t: F.mse_loss(out, t)),
    "by hand": of(lambda out, t: (out - t).square().mean()),
    "summed over features": of(lambda out, t: (out - t).square().sum(1).mean()),
    "half": of(lambda out, t: 0.5 * F.smooth_l1_loss(out, t)),
    "bce": of(lambda out, t: F.binary_cross_entropy(out.sigmoid(), t)),
    "two terms": lambda m, out, t, y: F.cross_entropy(out, y) / 2 + F.l1_loss(out, t),
    "and a penalty": lambda m, out, t, y: F.huber_loss(out, t) + 1e-2 * sum(p.square().sum() for p in m.parameters()),
}


@pytest.mark.parametrize("loss_of", MEANS.values(), ids=MEANS.keys())
def test_a_mean_is_no_sum(loss_of):
    (text,) = told(loss_of, windows=2, loss_reduction="sum")
    assert "is a mean" in text
    assert 'Accumulate(loss_reduction="mean")' in text
    assert told(loss_of, loader((1, 1, 1, 1)), loss_reduction="sum") == []


NO_MEANS = {
    "a mean times its number": of(lambda out, t: F.mse_loss(out, t) * len(t)),
    "a mean times a number": of(lambda out, t: F.mse_loss(out, t) * 64),
    "a sum and a mean of parameters": lambda m, out, t, y: (out - t).square().sum() + m.table.square().mean(),
    "a sum and a mean": of(lambda out, t: (out - t).square().sum() + out.abs().mean()),
    "averaged over features": of(lambda out, t: (out - t).square().mean(1).sum()),
    "a mean of parameters": lambda m, out, t, y: m.table.square().mean() + out.square().sum(),
    "a mean of means": of(lambda out, t: torch.stack([(out - t)[i].square().sum() for i in range(len(t))]).mean() * 4),
}


@pytest.mark.parametrize("loss_of", NO_MEANS.values(), ids=NO_MEANS.keys())
def test_what_is_a_sum_or_may_be_one(loss_of):
    assert told(loss_of, windows=2, loss_reduction="sum") == []


def test_saved_values_with_hooks_are_left_alone():
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: pytest.fail("unpacked before backward")):
        loss = (torch.ones(4, 1) * Model()(X[:4]).square()).sum() / torch.tensor(4.0)
    assert [over_samples(term, 4.0) for term in terms(loss)] == [None]


def test_values_are_read_as_often_as_one_looks():
    loss = F.mse_loss(Model()(X[:4]), T[:4]) * torch.tensor(0.5)
    assert terms(loss)[0].divisor == terms(loss)[0].divisor == 2


def on_a_rank():
    sees = {"DDP": lambda: DistributedDataParallel(Model(), find_unused_parameters=True)}
    return [
        told(lambda m, out, t, y: F.mse_loss(out, t, reduction="sum"), loader((4, 4)), make=sees["DDP"], windows=4),
        told(lambda m, out, t, y: F.mse_loss(out, t), loader((4, 4)), make=sees["DDP"], windows=4),
    ]


def test_ranks():
    for wrong, right in run_ranks(2, on_a_rank):
        assert ["is a sum over a micro-batch that weighs 4" in text for text in wrong] == [True]
        assert right == []


def test_as_many_time_steps_as_samples_are_left_alone():
    """The time comes first: a sum over it, and a mean over the samples."""

    def over_time(model, out, t, labels):
        return model.head(out.repeat(1, 2).expand(len(out), *out.repeat(1, 2).shape)).square().sum(0).mean()

    for loss_reduction in ("mean", "sum"):
        assert told(over_time, loss_reduction=loss_reduction) == []
