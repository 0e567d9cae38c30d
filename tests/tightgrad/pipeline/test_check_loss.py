"""`tg.check_loss`: whether accumulation is exact for a loss is found out, or it is said that it cannot be."""

import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import tightgrad as tg
from support.ranks import run_ranks
from support.training import on_ranks
from support.wrapping import small_model, wrap

FEATURES = 6


def model_of(dropout=0.0, *layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4), *layers)


def batch_of(size=8, seed=0, features=FEATURES):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, features, generator=generator), torch.randint(4, (size,), generator=generator)


MODEL = model_of()
CLASS_WEIGHTS = torch.tensor([0.1, 1.0, 3.0, 9.0])


def mean(batch, model=MODEL):
    return F.cross_entropy(model(batch[0]), batch[1])


def infonce(batch):
    first, second = F.normalize(MODEL(batch[0])), F.normalize(MODEL(batch[0] + 0.1))
    return F.cross_entropy(first @ second.T / 0.1, torch.arange(len(first)))


def barlow(batch):
    first, second = MODEL(batch[0]), MODEL(batch[0] + 0.1)
    return (first.T @ second / len(first) - torch.eye(4)).square().sum()


def balance(batch):
    return mean(batch) + 0.1 * MODEL(batch[0]).softmax(-1).mean(0).square().sum()


def advantages(batch):
    """The policy's surrogate loss: 0 for any batch, since advantages have the mean 0, but its gradient is not."""
    logs = F.log_softmax(MODEL(batch[0]), -1).gather(1, batch[1][:, None])[:, 0]
    rewards = batch[0].sum(1)
    return -((rewards - rewards.mean()) / rewards.std() * (logs - logs.detach()).exp()).mean()


def weighted(batch):
    return F.cross_entropy(MODEL(batch[0]), batch[1], weight=CLASS_WEIGHTS)


def by_hand(batch):
    """A weighted mean of one's own."""
    each = F.cross_entropy(MODEL(batch[0]), batch[1], reduction="none")
    weights = batch[0][:, 0].abs()
    return (weights * each).sum() / weights.sum()


def with_penalty(batch):
    """As WGAN-GP: the gradient with respect to the inputs is part of the loss."""
    inputs = batch[0].clone().requires_grad_(True)
    scores = MODEL(inputs)
    (slope,) = torch.autograd.grad(scores.sum(), inputs, create_graph=True)
    return F.cross_entropy(scores, batch[1]) + slope.square().sum(1).mean()


def after_an_inner_step(batch):
    """As MAML: the loss of parameters that one step has moved; of a batch it is no mean of its halves."""
    parameters = dict(MODEL.named_parameters())
    grads = torch.autograd.grad(mean(batch), list(parameters.values()), create_graph=True)
    moved = {name: p - 0.5 * grad for (name, p), grad in zip(parameters.items(), grads, strict=True)}
    return F.cross_entropy(torch.func.functional_call(MODEL, moved, (batch[0],)), batch[1])


def functional_norm(batch):
    return F.cross_entropy(F.batch_norm(MODEL(batch[0]), None, None, training=True), batch[1])


@pytest.mark.parametrize(
    ("loss", "seen", "cure"),
    [
        (infonce, "the mean loss of 8 samples is .* from its two halves", "run_cached"),
        (barlow, "two halves", "run_cached"),
        (balance, "two halves", "balance terms"),
        (
            advantages,
            "the gradient of 8 samples is not that of their two halves.*although the losses agree",
            "advantages",
        ),
        (weighted, "two halves", r"weight\(batch\) must return"),
        (by_hand, "two halves", r"weight\(batch\) must return"),
        (after_an_inner_step, "two halves", "no weighted mean of per-sample terms"),
        (functional_norm, r"batch_norm\(training=True\)", "GroupNorm"),
    ],
)
def test_what_is_no_mean_over_samples_is_found(loss, seen, cure):
    found = tg.check_loss(MODEL, loss, batch_of())
    assert found.is_additive is False
    assert not found
    for text in (seen, cure):
        assert re.search(text, found.message), found.message


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (mean, {}),
        (mean, {"weight": lambda batch: len(batch[0]), "batch": (torch.randn(9, FEATURES), torch.randint(4, (9,)))}),
        (weighted, {"weight": lambda batch: CLASS_WEIGHTS[batch[1]].sum()}),
        (by_hand, {"weight": lambda batch: batch[0][:, 0].abs().sum()}),
        (lambda batch: F.cross_entropy(MODEL(batch[0]), batch[1], reduction="sum"), {"loss_reduction": "sum"}),
        (lambda batch: {"classes": mean(batch), "size": MODEL(batch[0]).square().mean()}, {}),
        (lambda batch: mean(batch) / 4, {}),
        (with_penalty, {}),
        (lambda batch: {"score": mean(batch), "penalty": with_penalty(batch)}, {}),
        (mean, {"weight": lambda batch: 1.0}),
        (mean, {"weight": lambda batch: 1.0, "batch": batch_of(9)}),
        (lambda batch: mean((batch[0].mul_(2), batch[1])), {}),
        (lambda batch: mean((batch["x"], batch.pop("y"))), {"batch": dict(zip("xy", batch_of(), strict=True))}),
        (lambda batch: mean((batch["x"], batch["y"][0])), {"batch": {"x": batch_of()[0], "y": [batch_of()[1]]}}),
    ],
)
def test_a_weighted_mean_is_recognised(loss, arguments):
    arguments = {"batch": batch_of(), **arguments}
    found = tg.check_loss(MODEL, loss, **arguments)
    assert found, found.message
    assert found.is_additive is True
    assert found.loss_difference < 1e-6
    assert found.gradient_difference < 1e-6


@pytest.mark.parametrize(
    ("loss", "reduction", "instead"),
    [
        (lambda batch: F.cross_entropy(MODEL(batch[0]), batch[1], reduction="sum"), "mean", "sum"),
        (mean, "sum", "mean"),
    ],
)
def test_the_other_reduction_is_named(loss, reduction, instead):
    found = tg.check_loss(MODEL, loss, batch_of(), loss_reduction=reduction)
    assert not found
    assert f'write Accumulate(loss_reduction="{instead}")' in found.message


def test_one_of_several_losses_is_named():
    found = tg.check_loss(MODEL, lambda batch: {"classes": mean(batch), "pairs": infonce(batch)}, batch_of())
    assert not found
    assert "the mean pairs of 8 samples" in found.message


def test_a_weight_that_counts_labels_which_the_loss_shifts():
    """As in transformers' causal models: losses of the halves are alike, and their gradients tell."""
    embedding = nn.Embedding(16, 16)
    labels = torch.randint(16, (4, 9))
    labels[1, 2:], labels[2, 5:] = -100, -100

    def shifted(labels):
        logits = embedding(labels.clamp(min=0))[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    assert not tg.check_loss(embedding, shifted, labels, weight=lambda batch: (batch != -100).sum())
    assert tg.check_loss(embedding, shifted, labels, weight=lambda batch: (batch[:, 1:] != -100).sum())


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.BatchNorm1d(4), "4"),
        (nn.SyncBatchNorm(4), "4"),
        (nn.BatchNorm1d(4, track_running_stats=False).eval(), "4"),
    ],
)
def test_batch_norm_is_named(layer, name):
    model = model_of(0.0, layer)
    found = tg.check_loss(model, lambda batch: mean(batch, model), batch_of())
    assert found.is_additive is False
    assert found.message.startswith(f"BatchNorm in training mode (1: '{name}')")


def test_batch_norm_that_is_frozen_is_not():
    model = model_of(0.0, nn.BatchNorm1d(4).eval())
    assert tg.check_loss(model, lambda batch: mean(batch, model), batch_of())


def test_dropout_neither_accuses_nor_hides():
    model = model_of(0.5)
    assert tg.check_loss(model, lambda batch: mean(batch, model), batch_of())

    def pairs(batch):
        first = F.normalize(model(batch[0]))
        return F.cross_entropy(first @ first.T / 0.1, torch.arange(len(first)))

    assert tg.check_loss(model, pairs, batch_of()).is_additive is False


@pytest.mark.parametrize(
    ("loss", "batch", "said"),
    [
        (lambda batch: mean((batch[0] + torch.randn_like(batch[0]), batch[1])), batch_of(), "two forwards of the same"),
        (lambda batch: mean((F.dropout(batch[0]), batch[1])), batch_of(), "also in evaluation mode"),
        (mean, batch_of(1), "two samples"),
        (lambda batch: mean(batch) * torch.inf, batch_of(), "the loss is inf or NaN"),
        (lambda batch: mean((batch[0] * torch.nan, batch[1])), batch_of(), "the loss is inf or NaN"),
        (
            lambda batch: mean(batch) * (torch.ones(8) * batch[0][:, 0]).sum(),
            batch_of(),
            "half a batch raises RuntimeError",
        ),
        (lambda batch: MODEL(batch[0]).square().mean(), [batch_of()[0], object()], "object"),
    ],
)
def test_what_cannot_be_told_is_said(loss, batch, said):
    found = tg.check_loss(MODEL, loss, batch, weight=lambda batch: len(batch[0]))
    assert found.is_additive is None
    assert not found
    assert "cannot be told" in found.message
    assert said in found.message


def test_labels_of_tokens_are_asked_for():
    with pytest.raises(tg.ConfigError, match="weight=lambda batch"):
        tg.check_loss(
            MODEL, lambda batch: MODEL(batch["x"]).mean(), {"x": batch_of()[0], "labels": torch.arange(24).view(8, 3)}
        )


def test_nothing_is_left_of_it():
    model = model_of(0.3, nn.BatchNorm1d(4, affine=False))
    model[3].weight.grad = torch.ones_like(model[3].weight)
    model[4].eval()

    def state():
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        buffers = [buffer.clone() for buffer in model.buffers()]
        draws = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
        return grads, buffers, [module.training for module in model.modules()], draws

    def loss(batch):
        random.random(), np.random.rand()
        return mean(batch, model)

    before = state()
    tg.check_loss(model, loss, batch_of())
    after = state()
    assert before[2:] == after[2:]
    for one, other in zip(before[0] + before[1], after[0] + after[1], strict=True):
        assert (one is None) is (other is None)
        assert one is None or torch.equal(one, other)


def test_checkpointing_that_takes_no_gradient_of_its_own_is_looked_at_by_its_losses():
    def loss(batch):
        return F.cross_entropy(checkpoint(MODEL, batch[0].requires_grad_(), use_reentrant=True), batch[1])

    found = tg.check_loss(MODEL, loss, batch_of())
    assert found.is_additive is True
    assert found.gradient_difference is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precision_is_no_difference(dtype):
    model = model_of().to(dtype)
    loss = lambda batch: F.cross_entropy(model(batch[0].to(dtype)), batch[1])  # noqa: E731
    assert tg.check_loss(model, loss, batch_of(30))
    assert not tg.check_loss(model, lambda batch: loss(batch) * len(batch[0]), batch_of(30))


def test_a_sparse_gradient_counts_too():
    embedding = nn.Embedding(16, 4, sparse=True)
    batch = torch.randint(16, (8, 1)), torch.randint(4, (8,))
    assert tg.check_loss(
        embedding, lambda b: F.cross_entropy(embedding(b[0])[:, 0], b[1]), batch, weight=lambda b: len(b[1])
    )


def test_all_ranks_hear_of_what_one_sees():
    def body(collective):
        loss = infonce if collective.rank == 1 else mean
        return tg.check_loss(MODEL, loss, batch_of(), collective=collective)

    first, second = on_ranks(2, body)
    assert (first.is_additive, second.is_additive) == (False, False)
    assert "another rank (1)" in first.message
    assert "the mean loss of 8 samples" in second.message
    assert first.loss_difference == second.loss_difference


def test_all_ranks_hear_of_what_fails_on_one():
    def body(collective):
        def loss(batch):
            if collective.rank == 1 and not torch.is_grad_enabled():
                raise KeyError("no such field")
            return mean(batch)

        return tg.check_loss(MODEL, loss, batch_of(), collective=collective)

    first, second = on_ranks(2, body)
    assert str(first) == "the check of the loss failed on rank 1, which says why."
    assert isinstance(second, KeyError)


def under_a_wrapper(kind, batch_norm):
    model = wrap(small_model(), kind)
    batch = batch_of(8, torch.distributed.get_rank(), features=20)
    batch = batch[0], batch[1].clamp(max=2)
    loss = lambda batch: F.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    right = tg.check_loss(model, loss, batch)
    wrong = tg.check_loss(model, lambda batch: loss(batch) * (1 + len(batch[0])), batch)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(accumulate=tg.Accumulate(2)))
    for window in pipe.windows([batch, batch]):
        record = pipe.run(window, loss)
    return right.is_additive, wrong.is_additive, right.gradient_difference is None, record.step


@pytest.mark.parametrize(("kind", "without_gradients"), [("ddp", False), ("fsdp2", True)])
def test_under_a_wrapper(kind, without_gradients):
    found = run_ranks(2, under_a_wrapper, kind, False)
    assert found == [(True, False, without_gradients, 0)] * 2
