"""A weight that is not in proportion to what cross entropy has divided by is told."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import tightgrad as tg
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
    "a loss that autograd does not know": (lambda: labelled((2, 5, 6, 3)), halved, lambda batch: len(batch[0]) ** 2),
    "label smoothing": (lambda: labelled((2, 5, 6, 3)), smooth, lambda batch: len(batch[0]) ** 2),
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
