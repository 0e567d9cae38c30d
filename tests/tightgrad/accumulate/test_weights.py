"""The default weight counts samples, and asks where a batch does not show that its loss is averaged over them."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import tightgrad as tg
from support.training import linear, on_ranks, train
from tightgrad.accumulate import DefaultWeight

B, T = 4, 6
Pair = namedtuple("Pair", "inputs labels")


@dataclass
class Fields:
    x: Any
    y: Any


RAGGED = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged)


def ids(size=B, length=T):
    return torch.randint(2, 50, (size, length), generator=torch.Generator().manual_seed(0))


def mask(size=B, length=T):
    return torch.ones(size, length, dtype=torch.int64)


def classes(size=B):
    return torch.arange(size) % 3


def images(size=B):
    return torch.randn(size, 3, 8, 8)


UNAMBIGUOUS = {
    "one tensor": lambda n: torch.randn(n, 3),
    "images and classes": lambda n: (images(n), classes(n)),
    "text and a class": lambda n: {"input_ids": ids(n), "attention_mask": mask(n), "labels": classes(n)},
    "text and a class, one column": lambda n: {"input_ids": ids(n), "labels": classes(n)[:, None]},
    "text and a class, positional": lambda n: [ids(n), mask(n), classes(n)],
    "text and a class of another name": lambda n: {"input_ids": ids(n), "category": classes(n)},
    "two texts and a class": lambda n: {"a_ids": ids(n), "b_ids": ids(n, 9), "label": classes(n)},
    "a class as a list": lambda n: {"input_ids": ids(n), "label": classes(n).tolist()},
    "answers in a text": lambda n: {"input_ids": ids(n), "start_positions": classes(n), "end_positions": classes(n)},
    "regression": lambda n: (torch.randn(n, 5), torch.randn(n, 2)),
    "regression, one number": lambda n: {"x": torch.randn(n, 5), "y": torch.randn(n, 1)},
    "many labels, float": lambda n: {"input_ids": ids(n), "labels": torch.rand(n, 7)},
    "plus and minus one": lambda n: (torch.randn(n, 3), 1 - 2 * (torch.arange(n) % 2)),
    "two views": lambda n: ([images(n), images(n)], classes(n)),
    "pairs": lambda n: (images(n), images(n)),
    "uint8 images": lambda n: torch.zeros(n, 8, 8, 3, dtype=torch.uint8),
    "extras": lambda n: {"x": torch.randn(n, 3), "names": ["a"] * n, "temperature": torch.tensor(2.0), "k": 3},
    "missing inputs": lambda n: {"x": torch.randn(n, T), "missing": torch.rand(n, T) > 0.5, "price": torch.randn(n)},
    "masked actions": lambda n: {"obs": torch.randn(n, T, 3), "action_mask": mask(n).bool(), "action": classes(n)},
    "a class and a box": lambda n: [images(n), torch.arange(n) % 3, torch.randn(n, 2, 2)],
    "a mask of the input": lambda n: {"x": torch.randn(n, T, 3), "mask": torch.ones(n, T).bool(), "y": torch.randn(n)},
    "lengths of the input": lambda n: {"x": torch.randn(n, T, 3), "y": torch.randn(n, 2), "len": torch.full((n,), T)},
    "an end of each": lambda n: (torch.randn(n, 3), torch.zeros(n).bool(), torch.randn(n)),
    "truth values as labels": lambda n: {"x": torch.randn(n, 3), "labels": torch.ones(n, 7).bool()},
    "named tuple": lambda n: Pair(torch.randn(n, 3), classes(n)),
    "other mappings": lambda n: UserDict(x=torch.randn(n, 3), nested=OrderedDict(y=classes(n))),
    "numpy": lambda n: {"x": np.zeros((n, 3), np.float32), "label": np.arange(n)},
}


@pytest.mark.parametrize("make", UNAMBIGUOUS.values(), ids=UNAMBIGUOUS.keys())
def test_samples_are_counted_where_nothing_is_in_doubt(make):
    weight = DefaultWeight()
    assert [weight(make(size)) for size in (4, 4, 3, 1)] == [4, 4, 3, 1]


def test_texts_of_any_length_with_one_class_each():
    weight = DefaultWeight()
    assert [weight({"input_ids": ids(3, length), "labels": classes(3)}) for length in (5, 9, 2)] == [3, 3, 3]


def ignoring(labels):
    labels = labels.clone()
    labels.view(-1)[-1] = -100
    return labels


AMBIGUOUS = {
    "token labels": ({"input_ids": ids(), "labels": ids()}, r'\(batch\["labels"\]\[:, 1:\] != -100\)\.sum\(\)'),
    "token labels of another name": ({"input_ids": ids(), "target_ids": ids()}, r'batch\["target_ids"\]'),
    "translation": ({"src": ids(), "tgt": ids(B, 9)}, r'batch\["tgt"\]'),
    "token labels, positional": ((ids(), ids()), r"batch\[1\] of shape \(4, 6\)"),
    "token labels and lengths": ((ids(), ids(), classes()), r"batch\[1\]"),
    "token labels in a named tuple": (Pair(ids(), ids()), r"batch\.labels != -100"),
    "token labels of numpy": ({"labels": ids().numpy()}, r'batch\["labels"\]'),
    "token labels, nested": (({"input_ids": ids()}, {"labels": ids()}), r'batch\[1\]\["labels"\]'),
    "language model": ({"input_ids": ids(), "attention_mask": mask()}, "looks like tokens"),
    "language model, one tensor": (ids(), "looks like tokens"),
    "language model, bytes": (ids().to(torch.uint8), "looks like tokens"),
    "language model, lengths": ({"input_ids": ids(), "lengths": classes()}, "looks like tokens"),
    "a class and token labels": ({"input_ids": ids(), "labels": classes(), "token_labels": ids()}, "token_labels"),
    "masks of images": ((images(), ids().view(B, 2, 3)), r"batch\[1\]"),
    "masks of images, uint8": ({"image": images(), "target": torch.ones(B, 8, 8, dtype=torch.uint8)}, "target"),
    "ignored samples": ((torch.randn(B, 3), ignoring(classes())), "-100"),
    "ignored samples by another number": ((torch.randn(B, 3), torch.tensor([0, 2, -1, 1])), ">= 0"),
    "ignored anywhere": ({"x": torch.randn(B, 3), "extra": ignoring(ids())}, r'batch\["extra"\].*-100'),
    "sequence first": ((torch.randn(T, B, 3), classes()), "differ in their first dimension.*shape\\[1\\]"),
    "detection": (((images()[0], images()[1]), ({"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(5, 4)})), "len"),
    "detection, equal by chance": (([images()[0]] * 2, [{"boxes": torch.zeros(3, 4)}] * 2), "list, which may be one"),
    "a list of samples": ([images()[0]] * 5, r"len\(batch\)` for a list of samples"),
    "a list of dicts": ([{"input_ids": ids()[0]}] * 5, r"len\(batch\)` for a list of samples"),
    "a list of pairs": ([(images()[0], 1), (images()[0], 2)], "may be one of samples"),
    "a mask of targets": (
        {"x": torch.randn(B, T, 3), "y": torch.randn(B, T, 2), "mask": torch.rand(B, T).round()},
        r'weight=lambda batch: batch\["mask"\].sum\(\)` if the loss is divided by that',
    ),
    "a mask of targets, positional": (
        (torch.randn(B, 3), torch.randn(B, T), torch.ones(B, T).bool()),
        r"batch\[2\].*mask",
    ),
    "a mask of tokens": ({"attention_mask": mask(), "labels": torch.randn(B, T)}, "attention_mask.*looks like a mask"),
    "a mask of inputs": (
        {"patches": torch.randn(B, T, 3), "masked": torch.ones(B, T).bool()},
        "masked.*looks like a mask",
    ),
    "weights of samples": (
        {"x": torch.randn(B, 3), "y": torch.randn(B), "sample_weight": torch.rand(B)},
        "each sample",
    ),
    "lengths of padded targets": (
        {"x": torch.randn(B, T, 3), "y": torch.randn(B, T, 2), "lengths": torch.tensor([T, 2, 3, 1])},
        r"looks like lengths of padded labels.*\.sum\(\)",
    ),
    "lengths, positional": (
        (torch.randn(B, T, 3), torch.randn(B, T, 2), torch.tensor([T, 2, 3, 1])),
        "lengths of padded",
    ),
    "packed": ((pack_sequence([torch.ones(3), torch.ones(2)]), classes(2)), "PackedSequence"),
    "nested tensor": ({"x": RAGGED}, "nested tensor"),
    "dataclass": (Fields(torch.randn(B, 3), classes()), "batch is a dataclass Fields"),
    "dataclass in a dataclass": (Fields(Fields(torch.randn(B, 3), classes()), 0), "batch is a dataclass Fields"),
    "dataclass in a tuple": ((Fields(torch.randn(B, 3), 0), classes()), r"batch\[0\] is a dataclass Fields"),
    "dataclass in a mapping": ({"item": Fields(torch.randn(B, 3), 0)}, r'batch\["item"\] is a dataclass Fields'),
    "object with attributes": (SimpleNamespace(x=torch.randn(B, 3), y=classes()), "type SimpleNamespace holds no"),
    "text": ("text", "type str holds no tensor"),
    "nothing": (None, "type NoneType holds no tensor"),
}


@pytest.mark.parametrize(("batch", "message"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_a_batch_in_doubt_makes_the_user_say_it(batch, message):
    with pytest.raises(tg.ConfigError, match=message) as caught:
        DefaultWeight()(batch)
    assert "weight=lambda batch:" in str(caught.value)


CHANGING = {
    "sequence first": (lambda n: torch.randn(5, n, 3), r"batch\.shape\[1\]"),
    "sequence first, with labels": (lambda n: (torch.randn(5, n, 3), torch.randn(5, n, 1)), r"batch\[1\]"),
    "ragged regression": (lambda n: {"x": torch.randn(4, n, 3), "y": torch.randn(4, n)}, r"numel\(\)"),
    "images of any size without labels": (lambda n: {"image": torch.randn(4, 3, n, n)}, r"numel\(\)"),
    "a list of samples": (lambda n: [torch.randn(3, 8)] * n, "another one was of 2"),
}


@pytest.mark.parametrize(("make", "message"), CHANGING.values(), ids=CHANGING.keys())
def test_a_size_a_sample_that_changes_makes_the_user_say_it(make, message):
    weight = DefaultWeight()
    weight(make(2))
    weight(make(2))
    with pytest.raises(tg.ConfigError, match=message):
        weight(make(1))


@pytest.mark.parametrize("fetch", ["window", "batch"])
def test_every_rank_hears_of_it_before_any_backward(fetch):
    def body(collective):
        model = linear()
        plan = tg.Plan(accumulate=tg.Accumulate(2, fetch=fetch))
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective)
        batch = torch.randn(4, 3)
        loader = [ids(4, 3) if collective.rank == 1 else batch] * 4
        try:
            return train(pipe, model, loader)
        finally:
            assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())

    first, second, third = on_ranks(3, body)
    assert isinstance(second, tg.ConfigError)
    for other in (first, third):
        assert isinstance(other, tg.UsageError)
        assert "rank 1 failed while fetching a window" in str(other)


def test_a_weight_of_ones_own_is_not_looked_at():
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(2, fetch="window"))
    pipe = tg.attach(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        plan,
        weight=lambda batch: (batch["labels"][:, 1:] != -100).sum(),
    )
    window = next(pipe.windows([{"labels": ignoring(ids())}, {"labels": ids()}]))
    assert window.total_weight == 2 * B * (T - 1) - 1
