"""A weight that is not in proportion to what cross entropy has divided by is told."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import tightgrad as tg
from tightgrad.accumulate.denominator import DenominatorCheck
from tightgrad.core.notices import TightGradWarning

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0] * 4 + [2] * 3 + [1] + [2, 2, 1, 0] + [1] * 4)
CLASS_WEIGHTS = torch.tensor([0.1, 1.0, 5.0])
IGNORING = torch.where(torch.arange(16) % 7 == 0, -1, Y)
IMAGES = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(1))
PIXELS = torch.where(torch.arange(100).view(4, 5, 5) % 7 < torch.arange(4).view(4, 1, 1), 255, 1)


def class_weighted(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], weight=CLASS_WEIGHTS.to(batch[0].dtype))


def ignoring(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], ignore_index=-1)


def pixels(model, batch):
    scores = model(batch[0].movedim(1, -1)).movedim(-1, 1)
    return functional.cross_entropy(scores, batch[1], ignore_index=255)


def plain(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def halved(model, batch):
    return plain(model, batch) / 2


def summed(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], weight=CLASS_WEIGHTS, reduction="sum")


def summed_plain(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def by_samples(model, batch):
    return summed_plain(model, batch) / len(batch[0])


def by_a_constant(model, batch):
    return summed_plain(model, batch) / 4


def smooth_weighted(model, batch):
    weights = CLASS_WEIGHTS.to(batch[0].dtype)
    return functional.cross_entropy(model(batch[0]), batch[1], weight=weights, label_smoothing=0.1)


def smooth(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


def labelled(sizes=(4, 4, 4, 4), labels=Y):
    return list(zip(X.split(sizes), labels.split(sizes), strict=True))


def segmented():
    return list(zip(IMAGES.split(1), PIXELS.split(1), strict=True))


def run(loader, loss_of, weight=None, dtype=torch.float32, windows=1, **settings):
    torch.manual_seed(0)
    model = nn.Linear(8, 3).to(dtype)
    plan = tg.Plan(accumulate=tg.Accumulate(4, **settings))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan, weight=weight)
    for window in pipe.windows(loader * windows):
        for inputs, labels in window:
            pipe.backward(loss_of(model, (inputs.to(dtype), labels)))
        pipe.step()


WRONG = {
    "class weights": (labelled, class_weighted, None),
    "class weights, explicit samples": (labelled, class_weighted, lambda batch: len(batch[0])),
    "ignored labels": (lambda: labelled(labels=IGNORING), ignoring, lambda batch: len(batch[0])),
    "ignored pixels": (segmented, pixels, lambda batch: batch[1].numel()),
    "one sample each": (lambda: labelled([1] * 16), class_weighted, None),
    "times a number": (labelled, lambda m, b: 2.0 * class_weighted(m, b), None),
    "times a tensor on the left": (labelled, lambda m, b: torch.tensor(3.0) * class_weighted(m, b), None),
    "divided by a number": (lambda: labelled((2, 5, 6, 3)), halved, lambda batch: len(batch[0]) ** 2),
    "with another term": (labelled, lambda m, b: m(b[0]).square().mean() + class_weighted(m, b), None),
    "several terms": (labelled, lambda m, b: sum([class_weighted(m, b), m.weight.sum(), m.bias.norm()]), None),
    "less another term": (labelled, lambda m, b: -(m.bias.norm() - class_weighted(m, b) / 4), None),
    "in another precision": (labelled, lambda m, b: class_weighted(m, b).double(), None),
    "label smoothing": (lambda: labelled((2, 5, 6, 3)), smooth, lambda batch: len(batch[0]) ** 2),
    "a sum over labels, divided by samples": (lambda: labelled((2, 5, 6, 3)), by_samples, lambda batch: 1.0),
    "a sum over labels, divided by a constant": (lambda: labelled((2, 5, 6, 3)), by_a_constant, None),
    "two heads": (labelled, lambda m, b: class_weighted(m, b) + 0.5 * class_weighted(m, (b[0] + 1, b[1])), None),
    "one label too many": (lambda: labelled((2, 5, 6, 3)), plain, lambda batch: len(batch[0]) + 1),
}


@pytest.mark.parametrize(("loader", "loss_of", "weight"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("fetch", ["window", "batch"])
def test_it_is_told_once(loader, loss_of, weight, fetch):
    with pytest.warns(TightGradWarning, match=r"to be in proportion to what losses are averaged over") as caught:
        run(loader(), loss_of, weight, windows=3, fetch=fetch)
    assert len(caught) == 1
    assert caught[0].filename == __file__


RIGHT = {
    "samples": (lambda: labelled((2, 5, 6, 3)), plain, None),
    "a multiple": (lambda: labelled((2, 5, 6, 3)), plain, lambda batch: 7 * len(batch[0])),
    "class weights": (labelled, class_weighted, lambda batch: CLASS_WEIGHTS[batch[1]].sum()),
    "ignored labels": (lambda: labelled(labels=IGNORING), ignoring, lambda batch: (batch[1] != -1).sum()),
    "ignored pixels": (segmented, pixels, lambda batch: (batch[1] != 255).sum()),
    "a loss that autograd does not know": (
        lambda: labelled((2, 5, 6, 3)),
        lambda m, b: functional.mse_loss(m(b[0])[:, 0], b[1].to(b[0].dtype)),
        lambda batch: len(batch[0]) ** 2,
    ),
    "divided by a number": (lambda: labelled((2, 5, 6, 3)), halved, None),
    "label smoothing": (lambda: labelled((2, 5, 6, 3)), smooth, None),
    "label smoothing, class weights": (labelled, smooth_weighted, lambda batch: CLASS_WEIGHTS[batch[1]].sum()),
    "a sum over labels, divided by samples": (lambda: labelled((2, 5, 6, 3)), by_samples, None),
    "a sum over labels, times a fraction": (
        lambda: labelled((2, 5, 6, 3)),
        lambda m, b: (1 / len(b[0])) * summed_plain(m, b),
        None,
    ),
    "a mean that is weighted by hand": (
        lambda: labelled((2, 5, 6, 3)),
        lambda m, b: plain(m, b) * len(b[0]),
        lambda batch: 1.0,
    ),
    "returns of episodes": (
        lambda: labelled((2, 5, 6, 3)),
        lambda m, b: plain(m, b) * b[0].sum().abs(),
        lambda batch: len(batch[0]),
    ),
    "a term a token and a term a sample": (
        labelled,
        lambda m, b: class_weighted(m, b) + 0.1 * plain(m, b),
        lambda batch: len(batch[0]),
    ),
    "a product of two losses": (labelled, lambda m, b: class_weighted(m, b) * m.bias.norm(), None),
    "sums, each of weight 1": (lambda: labelled((2, 5, 6, 3)), lambda m, b: summed_plain(m, b), lambda batch: 1.0),
    "one of weight 0": (
        labelled,
        class_weighted,
        lambda batch: float(batch[1][0] == 0) * CLASS_WEIGHTS[batch[1]].sum(),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("loader", "loss_of", "weight"), RIGHT.values(), ids=RIGHT.keys())
def test_what_is_right_or_unknown_is_not_spoken_of(loader, loss_of, weight, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(loader(), loss_of, weight, dtype, windows=2)


def test_one_micro_batch_a_window_is_compared_with_none():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(0)
        model = nn.Linear(8, 3)
        compress = tg.Compress(tg.codecs.TopK(0.5), feedback=tg.ErrorFeedback())
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), tg.Plan(compress=compress))
        for window in pipe.windows(labelled((2, 5, 6, 3))):
            for batch in window:
                pipe.backward(plain(model, batch))
            pipe.step()


def test_a_checkpointed_forward_does_not_run_for_it():
    calls = []

    def counted(model, batch):
        def forward(inputs):
            calls.append(len(inputs))
            return class_weighted(model, (inputs, batch[1]))

        return checkpoint(forward, batch[0], use_reentrant=False)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(labelled(), counted)
    assert calls == [4, 4] * 4


def test_sums_have_no_divisor():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(labelled(), summed, lambda batch: CLASS_WEIGHTS[batch[1]].sum(), loss_reduction="sum")


SAID = {
    "a sum under mean": (summed_plain, "mean", None, 'reduction="sum".*weighs 4.*Accumulate.loss_reduction="sum"'),
    "a mean under sum": (plain, "sum", None, 'averaged over 4.*weighs 4.*Accumulate.loss_reduction="mean"'),
    "a mean under sum, constant weight": (plain, "sum", lambda batch: 2.0, "averaged over 4.*weighs 2"),
}


@pytest.mark.parametrize(("loss_of", "reduction", "weight", "said"), SAID.values(), ids=SAID.keys())
def test_the_other_reduction_is_told_once(loss_of, reduction, weight, said):
    with pytest.warns(TightGradWarning, match=said) as caught:
        run(labelled(), loss_of, weight, windows=3, loss_reduction=reduction)
    assert [warning.filename for warning in caught] == [__file__]


UNSAID = {
    "a sum divided by its number, under mean": (by_samples, "mean", None),
    "a sum under sum": (summed_plain, "sum", None),
    "a mean under sum, each of weight 1": (plain, "sum", lambda batch: 1.0),
    "a mean times its number, under sum": (lambda m, b: plain(m, b) * len(b[0]), "sum", None),
}


@pytest.mark.parametrize(("loss_of", "reduction", "weight"), UNSAID.values(), ids=UNSAID.keys())
def test_the_right_reduction_is_not_spoken_of(loss_of, reduction, weight):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(labelled((2, 5, 6, 3)), loss_of, weight, windows=2, loss_reduction=reduction)


def over_window(number, reduction="sum"):
    return lambda m, b: functional.cross_entropy(m(b[0]), b[1], reduction=reduction).sum() / number


DIVIDED = {
    "cross entropy": (over_window(16), "mean", (4, 4, 4, 4)),
    "each sample's": (over_window(16.0, "none"), "mean", (4, 4, 4, 4)),
    "ragged": (over_window(16), "mean", (5, 3, 2, 6)),
    "squares": (lambda m, b: m(b[0]).square().sum(1).sum() / torch.tensor(16) * 3, "mean", (4, 4, 4, 4)),
    "a term": (lambda m, b: over_window(16)(m, b) + 0.01 * m.weight.square().sum(), "mean", (4, 4, 4, 4)),
    "a sum, under sum": (over_window(16), "sum", (4, 4, 4, 4)),
}


@pytest.mark.parametrize(("loss_of", "reduction", "sizes"), DIVIDED.values(), ids=DIVIDED.keys())
def test_a_sum_divided_by_the_weight_of_its_window_is_told_once(loss_of, reduction, sizes):
    with pytest.warns(TightGradWarning, match="divided by 16, the weight of the whole window on all ranks") as caught:
        run(labelled(sizes), loss_of, windows=3, loss_reduction=reduction, fetch="window")
    assert [warning.filename for warning in caught] == [__file__]


NOT_DIVIDED = {
    "by its own samples": by_samples,
    "by its own samples, times a share": lambda m, b: (1 - 1 / 16) * plain(m, b) + 1 / 16 * by_samples(m, b),
    "a prior on weights": lambda m, b: plain(m, b) + m.weight.square().sum() / 16,
    "a mean over features of as many": lambda m, b: (b[0][:, :4] * m(b[0])[:, :1]).sum() / 16,
    "a mean": lambda m, b: m(b[0]).square().mean(),
}


@pytest.mark.parametrize("loss_of", NOT_DIVIDED.values(), ids=NOT_DIVIDED.keys())
def test_other_divisors_of_sums_are_left_alone(loss_of):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(labelled(), loss_of, windows=3)


@pytest.mark.parametrize(("divisor", "where"), [(16.0, "all ranks"), (8.0, "one rank")])
def test_a_sum_divided_by_the_weight_of_one_rank_or_of_all(divisor, where):
    model, check = nn.Linear(8, 3), DenominatorCheck(ranks=2)
    first, second = [over_window(divisor)(model, batch) for batch in labelled()[:2]]
    check.compare(first, 4.0, None, total=16.0)
    with pytest.warns(TightGradWarning, match=f"divided by {divisor:g}, the weight of the whole window on {where}"):
        check.compare(second, 4.0, None, total=16.0)


def test_a_mean_by_hand_under_sum():
    with pytest.warns(
        TightGradWarning, match=r"a mean \(over its samples\).*Accumulate.loss_reduction=\"mean\""
    ) as caught:
        run(labelled((4, 3, 6, 3)), lambda m, b: m(b[0]).square().sum() / len(b[0]), loss_reduction="sum")
    assert len(caught) == 1


def test_a_sum_that_is_the_whole_window_is_right():
    """One micro-batch on one rank is multiplied by weight / N = 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nn.Linear(8, 3)
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), tg.Plan(clip=tg.clip.GlobalNorm(1.0)))
        for window in pipe.windows(labelled()):
            for batch in window:
                pipe.backward(summed_plain(model, batch))
            pipe.step()


def lone(loss_of, loader, weight):
    """What one rank of two says, which has one micro-batch in each window."""
    model, check = nn.Linear(8, 3), DenominatorCheck()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in loader:
            check.compare(loss_of(model, batch), float(weight(batch)), None, total=100.0)
    return [str(warning.message) for warning in caught]


def test_one_micro_batch_a_rank_is_compared_with_the_one_of_the_next_window():
    (said,) = lone(class_weighted, labelled(), lambda batch: len(batch[0]))
    assert "in proportion" in said
    assert len(lone(ignoring, labelled(labels=IGNORING), lambda batch: len(batch[0]))) == 1


def test_what_all_ranks_may_have_alike_in_a_window_is_not_spoken_of():
    assert not lone(class_weighted, labelled(), lambda batch: CLASS_WEIGHTS[batch[1]].sum())
    assert not lone(plain, labelled((4, 4, 5, 3)), lambda batch: 1.0)  # the last windows of a loader are smaller
    assert not lone(by_samples, labelled((4, 4, 5, 3)), lambda batch: 1.0)
    tokens = [(torch.randn(4, length, 8).movedim(-1, 1), torch.zeros(4, length, dtype=torch.long)) for length in (5, 9)]
    assert not lone(lambda m, b: plain(lambda x: x, (m(b[0].movedim(1, -1)).movedim(-1, 1), b[1])), tokens, lambda b: 4)
