"""Loaders as people have them: a stream with a worker, tuples of images and targets, sequences with time first."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import tightgrad as tg

SEEDS = torch.Generator().manual_seed(0)
ROWS, WANTED = torch.randn(14, 8, generator=SEEDS), torch.randn(14, 1, generator=SEEDS)
IMAGES = [torch.randn(3, 8, 8, generator=SEEDS) for _ in range(9)]
SEQUENCES = torch.randn(5, 9, 8, generator=SEEDS)  # time first


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(ROWS, WANTED, strict=True)


def scenes():
    for start in (0, 4, 8):
        images = tuple(IMAGES[start : start + 4])
        yield images, tuple({"boxes": torch.zeros(1 + i % 3, 4)} for i in range(len(images)))


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def responses(model, batch):
    return sum(model(image[None]).square().mean() for image in batch[0]) / len(batch[0])


def activity(model, batch):
    return model(batch).square().mean()


def double(tree):
    if isinstance(tree, torch.Tensor):
        return tree.double()
    return tuple(map(double, tree)) if isinstance(tree, tuple) else tree


@pytest.mark.parametrize(
    ("loader", "loss_of", "weight", "whole", "total"),
    [
        (lambda: DataLoader(Stream(), batch_size=4, num_workers=1), squares, None, (ROWS, WANTED), 14),
        (scenes, responses, lambda batch: len(batch[0]), (tuple(IMAGES), ()), 9),
        (lambda: SEQUENCES.split(4, dim=1), activity, lambda batch: batch.shape[1], SEQUENCES, 9),
    ],
    ids=["stream", "detection", "sequence first"],
)
@pytest.mark.parametrize("fetch", ["window", "batch"])
def test_the_gradient_is_that_of_the_big_batch(loader, loss_of, weight, whole, total, fetch):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 2, 3) if loss_of is responses else nn.Linear(8, 1)
    reference = copy.deepcopy(model).double()
    loss_of(reference, double(whole)).backward()
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad.double() for p in model.parameters()]))
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(4, fetch=fetch)), weight=weight)
    for window in pipe.windows(loader()):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        assert pipe.step().weight == total
    for ours, parameter in zip(*seen, reference.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "plan", [tg.Plan(), *(tg.Plan(accumulate=tg.Accumulate(2, fetch=f)) for f in ("window", "batch"))]
)
def test_a_generator_goes_on_where_a_loop_over_windows_was_left(plan):
    model, seen = nn.Linear(8, 1), []
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    generator = ((number, row[None]) for number, row in enumerate(ROWS))
    for _ in range(3):
        for window in pipe.windows(generator):
            for number, row in window:
                pipe.backward(model(row).square().mean())
                seen.append(number)
            pipe.step()
            break
    assert seen == list(range(3 * (2 if plan.accumulate else 1)))
