"""A batch is cut along its samples, or not at all."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import tightgrad as tg
from support.training import linear, loss_of, on_ranks
from tightgrad.accumulate.split import batch_size, split_batch

Pair = namedtuple("Pair", "inputs labels")
RAGGED = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged)


@dataclass
class Sample:
    inputs: torch.Tensor


def rows(size, width=2):
    return torch.arange(size * width, dtype=torch.float32).view(size, width)


def lists(value):
    """The same with lists for tensors, so that == compares."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, dict | UserDict):
        return {key: lists(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [lists(item) for item in value]
    return value


BOXES = [torch.full((count, 4), float(count)) for count in (2, 0, 5, 1)]
CUT = {
    "captions": (
        {"x": rows(4, 1), "caption": ["a", "b", "c", "d"]},
        [{"x": [[0.0], [1.0]], "caption": ["a", "b"]}, {"x": [[2.0], [3.0]], "caption": ["c", "d"]}],
    ),
    "captions of default_collate": (
        [rows(2, 1), ("a", "b")],
        [[[[0.0]], ["a"]], [[[1.0]], ["b"]]],
    ),
    "boxes": (
        {"x": rows(4, 1), "boxes": BOXES},
        [{"x": [[0.0], [1.0]], "boxes": lists(BOXES[:2])}, {"x": [[2.0], [3.0]], "boxes": lists(BOXES[2:])}],
    ),
    "detection": (
        (tuple(torch.zeros(3, 1, n) for n in (1, 2)), tuple({"boxes": box} for box in BOXES[:2])),
        [[[[[[0.0]]] * 3], [{"boxes": lists(BOXES[0])}]], [[[[[0.0, 0.0]]] * 3], [{"boxes": []}]]],
    ),
    "two views": (
        ([rows(4, 1), -rows(4, 1)], torch.arange(4)),
        [[[[[0.0], [1.0]], [[0.0], [-1.0]]], [0, 1]], [[[[2.0], [3.0]], [[-2.0], [-3.0]]], [2, 3]]],
    ),
    "views beside boxes": (
        {"views": [rows(4, 1), rows(4, 1)], "boxes": BOXES},
        [
            {"views": [[[0.0], [1.0]]] * 2, "boxes": lists(BOXES[:2])},
            {"views": [[[2.0], [3.0]]] * 2, "boxes": lists(BOXES[2:])},
        ],
    ),
    "constants": (
        {"x": rows(2, 1), "t": torch.tensor(0.5), "k": 3, "mode": "ab", "n": None, "s": np.float32(2.0)},
        [{"x": [[float(i)]], "t": 0.5, "k": 3, "mode": "ab", "n": None, "s": 2.0} for i in (0, 1)],
    ),
    "token lists": (
        {"x": rows(2, 1), "tokens": [[1, 2, 3], []], "spans": [None, (4, 7)]},
        [{"x": [[0.0]], "tokens": [[1, 2, 3]], "spans": [None]}, {"x": [[1.0]], "tokens": [[]], "spans": [[4, 7]]}],
    ),
    "a dict of columns, and one of settings": (
        {"x": rows(2, 1), "meta": {"id": ["a", "b"], "frames": (8, [9])}, "settings": {"t": 0.1, "mode": "a", "k": 3}},
        [
            {"x": [[0.0]], "meta": {"id": ["a"], "frames": [8]}, "settings": {"t": 0.1, "mode": "a", "k": 3}},
            {"x": [[1.0]], "meta": {"id": ["b"], "frames": [[9]]}, "settings": {"t": 0.1, "mode": "a", "k": 3}},
        ],
    ),
    "dicts of each sample": (
        {"x": rows(2, 1), "targets": [{"name": "a", "box": [1, 2, 3]}, {"name": "b"}]},
        [{"x": [[0.0]], "targets": [{"name": "a", "box": [1, 2, 3]}]}, {"x": [[1.0]], "targets": [{"name": "b"}]}],
    ),
    "numpy": (
        {"x": np.arange(4), "names": np.array(["a", "b", "c", "d"])},
        [{"x": [0, 1], "names": ["a", "b"]}, {"x": [2, 3], "names": ["c", "d"]}],
    ),
    "lists only": (
        {"text": ["a", "b"], "label": [0, 1]},
        [{"text": ["a"], "label": [0]}, {"text": ["b"], "label": [1]}],
    ),
    "labels without dimensions": (
        {"x": rows(2, 1), "y": [torch.tensor(3.0), torch.tensor(4.0)]},
        [{"x": [[0.0]], "y": [3.0]}, {"x": [[1.0]], "y": [4.0]}],
    ),
    "nested": (
        {"a": {"b": torch.arange(2)}, "c": (torch.arange(2), (), None)},
        [{"a": {"b": [0]}, "c": [[0], [], None]}, {"a": {"b": [1]}, "c": [[1], [], None]}],
    ),
}


@pytest.mark.parametrize(("batch", "pieces"), CUT.values(), ids=CUT.keys())
def test_pieces(batch, pieces):
    assert lists(split_batch(batch, 2)) == pieces


@pytest.mark.parametrize(
    "make", [lambda x: Pair(x, x), lambda x: UserDict(x=x), lambda x: OrderedDict(x=x), lambda x: [x, x], lambda x: x]
)
def test_a_piece_is_of_the_batch_s_type(make):
    batch = make(rows(5))
    pieces = split_batch(batch, 2)
    assert [type(piece) for piece in pieces] == [type(batch)] * 2
    assert [batch_size(piece) for piece in pieces] == [2, 3]
    assert batch_size(batch) == 5, "the batch itself is as it was"


def test_a_batch_encoding_keeps_its_attributes():
    transformers = pytest.importorskip("transformers")
    first, second = split_batch(transformers.BatchEncoding({"input_ids": rows(2), "labels": torch.arange(2)}), 2)
    assert first.input_ids.tolist() == [[0.0, 1.0]]
    assert second.labels.tolist() == [1]


REFUSED = {
    "a list of another length": ({"x": rows(4), "caption": ["a", "b"]}, r'batch\["caption"\] is a list of 2'),
    "a tuple of numbers": ({"x": rows(2), "size": (224, 224)}, r'batch\["size"\] is a tuple of numbers'),
    "a shape": ({"x": rows(2), "size": torch.Size((2, 2))}, r'batch\["size"\] is a Size'),
    "another first dimension": ((rows(3), rows(2)), r"has 3 samples, another \(batch\[1\]\) the shape \(2, 2\)"),
    "fields of two sizes in a list": ({"x": rows(4), "views": [rows(4), rows(3)]}, r'batch\["views"\]'),
    "as many views as samples": (([rows(2), rows(2)], torch.arange(2)), "more than one way"),
    "as many numbers as samples": (
        {"x": rows(2), "names": ["a", "b"], "t": [{"b": [1, 2]}, {"b": [3, 4]}]},
        r'batch\["t"\] can be understood in more than one way',
    ),
    "as many colours as images": (
        ([torch.zeros(3, 2, 2)] * 3, [{"boxes": torch.zeros(3, 4)}] * 3),
        "more than one way",
    ),
    "a list of samples": ([torch.zeros(3, 8, 8)] * 4, "samples as well as fields"),
    "a list of dicts": ([{"x": torch.zeros(3)}] * 4, "samples as well as fields"),
    "a list of texts": (["a", "b", "c"], "without tensors or lists"),
    "a dataclass": (Sample(rows(2)), "dataclass Sample"),
    "a dataclass inside": ({"x": rows(2), "sample": Sample(rows(2))}, r'batch\["sample"\] is a dataclass Sample'),
    "packed": ((pack_sequence([torch.ones(3), torch.ones(2)]), torch.arange(2)), "PackedSequence"),
    "nested tensor": ({"x": RAGGED, "y": rows(2)}, "nested tensor"),
    "sparse": ({"x": torch.eye(2).to_sparse(), "y": rows(2)}, "sparse_coo"),
    "as many entries as samples": ({"x": rows(2), "names": {7: "cat", 9: "dog"}}, r'batch\["names"\] has 2 entries'),
    "one box list for each id": ({"x": rows(2), "t": {7: [1], 9: [2, 3]}}, r'batch\["t"\]\[7\] is a list of 1'),
    "one object for each id": ({"x": rows(2), "t": {7: object(), 9: object()}}, r'batch\["t"\]\[7\] is a object'),
    "columns of another length": (
        {"x": rows(4), "meta": {"id": ["a", "b"]}},
        r'batch\["meta"\]\["id"\] is a list of 2',
    ),
    "another object": ({"x": rows(2), "graph": object()}, r'batch\["graph"\] is a object'),
    "a set": ({"x": rows(2), "names": {"a", "b"}}, "is a set"),
    "nothing": ({}, "without tensors or lists"),
    "a number": (3.0, "without tensors or lists"),
}


@pytest.mark.parametrize(("batch", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_cut_is_refused_by_name(batch, message):
    with pytest.raises(tg.ConfigError, match=message) as caught:
        split_batch(batch, 2)
    assert 'cut it into micro-batches in the loader, and take source="loader"' in str(caught.value)


@pytest.mark.parametrize("settings", [{"source": "split"}, {"on_oom": "split"}], ids=["source", "on_oom"])
def test_every_rank_hears_of_it_before_any_backward(settings):
    def body(collective):
        model = linear()
        plan = tg.Plan(accumulate=tg.Accumulate(1 if "on_oom" in settings else 2, **settings))
        pipe = tg.attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), plan, weight=lambda batch: 1.0, collective=collective
        )
        batch = {"x": rows(4, 3), "caption": ["a"] * (2 if collective.rank == 1 else 4)}
        return [pipe.run(window, lambda batch: loss_of(model, batch["x"])) for window in pipe.windows([batch])]

    first, second = on_ranks(2, body)
    assert isinstance(second, tg.ConfigError)
    assert "caption" in str(second)
    assert isinstance(first, tg.UsageError)
    assert "rank 1 failed while fetching" in str(first)


def after_running_out_of_memory(weight_of_rank_1):
    """What two ranks say when a batch of four samples has to be cut, and rank 1 weighs in its own way."""

    def body(collective):
        model = linear()
        plan = tg.Plan(accumulate=tg.Accumulate(1, on_oom="split"))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        weight = weight_of_rank_1 if collective.rank == 1 else len
        pipe = tg.attach(model, optimizer, plan, weight=weight, collective=collective)

        def loss(batch):
            if len(batch) > 2:
                raise torch.OutOfMemoryError("injected: out of memory")
            return loss_of(model, batch)

        return [pipe.run(window, loss) for window in pipe.windows([rows(4, 3)])]

    return on_ranks(2, body)


def test_pieces_that_do_not_add_up_on_one_rank_are_an_error_on_every_rank():
    first, second = after_running_out_of_memory(lambda batch: 5.0 if len(batch) == 4 else len(batch))
    assert isinstance(second, tg.ConfigError)
    assert "4.0 together" in str(second)
    assert isinstance(first, tg.ConfigError)
    assert "another rank" in str(first)


def test_a_weight_that_halves_do_not_share_is_found_before_the_cut_on_every_rank():
    first, second = after_running_out_of_memory(lambda batch: 4.0)
    assert isinstance(second, tg.UnsupportedError)
    assert "weight(batch) must return what it is averaged over" in str(second)
    assert isinstance(first, tg.TightGradError)


def test_captions_reach_the_loss_with_their_own_images():
    model = linear()
    plan = tg.Plan(accumulate=tg.Accumulate(3, source="split"))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    batch = {"x": rows(7, 3), "caption": [str(i) for i in range(7)]}
    seen = []
    for window in pipe.windows([batch]):
        for piece in window:
            assert [str(int(row[0]) // 3) for row in piece["x"]] == piece["caption"]
            seen += piece["caption"]
            pipe.backward(loss_of(model, piece["x"]))
        assert pipe.step().weight == 7
    assert seen == batch["caption"]
