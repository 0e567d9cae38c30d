"""Files as people write them from the page alone: what they give back is understood, or refused in words."""

from pathlib import Path

import pytest

from tightgrad_lab.audit.given import batches_of, loss_of, model_of
from tightgrad_lab.audit.run import audit_files
from tightgrad_lab.audit.specification import load
from tightgrad_lab.errors import ArgumentError

HEAD = """
import copy
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ACCUMULATE = 4
RANKS = 1
"""
BUILD = """
def build_model():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
"""
MAKE = """
def make_batches(count, ragged):
    sizes = [2 + (7 * i) % 5 if ragged else 4 for i in range(count)]
    return [(torch.randn(size, 6), torch.randint(3, (size,))) for size in sizes]
"""
LOSS = """
def loss(model, batch):
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets), len(targets)
"""
TRAIN = """
def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for start in range(0, len(batches), ACCUMULATE):
        window = batches[start : start + ACCUMULATE]
        weights = [float(loss(model, batch)[1]) for batch in window]
        for place, batch in enumerate(window):
            (loss(model, batch)[0] * weights[place] / sum(weights)).backward()
        optimizer.step()
        optimizer.zero_grad()
"""
PENALTY = "1e-2 * sum(one.pow(2).sum() for one in model.parameters())"
BY_HAND = "(loss(model, batch)[0] * weights[place] / sum(weights))"


def text(build: str = BUILD, make: str = MAKE, loss: str = LOSS, train: str = TRAIN, head: str = HEAD) -> str:
    return head + build + make + loss + train


def forward(body: str, layers: str = "self.out = nn.Linear(6, 3)") -> str:
    return f"""
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        {layers}

    def forward(self, inputs):
        {body}


def build_model():
    return Model()
"""


def held(kind: str) -> str:
    return f"""
@dataclass
class Held:
    inputs: torch.Tensor
    targets: torch.Tensor


def make_batches(count, ragged):
    return [{kind} for _ in range(count)]
"""


FIELDS = LOSS.replace("inputs, targets = batch", "inputs, targets = batch.inputs, batch.targets")
POPS = """
def loss(model, batch):
    targets = batch.pop("targets")
    return F.cross_entropy(model(**batch), targets), len(targets)
"""
RIGHT = {
    "a generator": text(make=MAKE.replace("return [", "return (").replace("sizes]\n", "sizes)\n")),
    "a loader": text(
        make="def make_batches(count, ragged):\n    rows = torch.randn(4 * count, 6), torch.randint(3, (4 * count,))\n"
        "    return DataLoader(TensorDataset(*rows), batch_size=4)\n"
    ),
    "a dataclass": text(make=held("Held(torch.randn(4, 6), torch.randint(3, (4,)))"), loss=FIELDS),
    "a state of zeros": text(
        build=forward(
            "return self.out(self.cell(inputs, torch.zeros(len(inputs), 6)))",
            "self.cell, self.out = nn.GRUCell(6, 6), nn.Linear(6, 3)",
        )
    ),
    "a forward in float32": text(build=forward("return self.out(inputs.float())")),
    "a forward that draws": text(build=forward("return self.out(inputs + torch.randn(len(inputs), 6))")),
    "a model in bfloat16": text(
        head=HEAD + "PRECISION = 'bfloat16'\n",
        build=BUILD.rstrip() + ".to(torch.bfloat16)\n",
        loss=LOSS.replace("model(inputs)", "model(inputs.bfloat16()).float()"),
    ),
    "a sparse gradient": text(
        build=forward(
            "return self.out((3 * inputs[:, 0]).long().clamp(0, 8))", "self.out = nn.Embedding(9, 3, sparse=True)"
        )
    ),
    "BatchNorm and dropout": text(build=BUILD.replace("nn.Tanh()", "nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5)")),
    "batches that are emptied": text(
        make=held("{'input': torch.randn(4, 6), 'targets': torch.randint(3, (4,))}"),
        loss=POPS,
        train=TRAIN.replace("loss(model, batch)[1]", 'len(batch["targets"])')
        + "        window.clear()\n    batches.clear()\n",
    ),
    "data that are wiped": text(train=TRAIN.replace(".backward()", ".backward()\n            batch[0].zero_()")),
    "a term that is divided": text(loss=LOSS.replace(", len(t", f" + {PENALTY}, len(t")),
    "one thread on however many cores": text(
        build=BUILD.replace("    return", "    assert torch.get_num_threads() == 1\n    return")
    ),
}
WRONG = {
    "an undivided penalty": (
        text(
            loss=LOSS.replace(", len(t", f" + {PENALTY}, len(t"),
            train=TRAIN.replace(BY_HAND, f"(F.cross_entropy(model(batch[0]), batch[1]) / len(window) + {PENALTY})"),
        ),
        "a term of the loss is not divided with the rest of it",
    ),
    "only the last divided": (
        text(
            train=TRAIN.replace(BY_HAND, "(loss(model, batch)[0] / (len(window) if place == len(window) - 1 else 1))")
        ),
        "not all divided alike: only the last one is divided by 5",
    ),
    "by its own number": (
        text(train=TRAIN.replace(BY_HAND, "(loss(model, batch)[0] / (place + 1))")),
        "not all divided alike: each is divided by its own number",
    ),
    "weights of its own": (
        text(train=TRAIN.replace(BY_HAND, "(loss(model, batch)[0] * (0.7, 0.1, 0.1, 0.05, 0.05)[place])")),
        "micro-batches of a window count 3.5, 0.5, 0.5, 0.25, 0.25 times what they should",
    ),
    "data drawn anew": (
        text(train=TRAIN.replace(BY_HAND, "batch[0].normal_()\n            " + BY_HAND)),
        "train changes its micro-batches in place",
    ),
    "data scaled twice": (
        text(train=TRAIN.replace(BY_HAND, "batch[0].mul_(0.5)\n            " + BY_HAND)),
        "train changes its micro-batches in place",
    ),
}
REFUSED = {
    "loss alone": (text(loss=LOSS.replace(", len(targets)\n", "\n")), "it returned a tensor of shape ()"),
    "no loss": (text(loss=LOSS.replace("return", "found =")), "it returned None. Write return loss, number_of_targets"),
    "a float": (text(loss=LOSS.replace("targets), l", "targets).item(), l")), "the loss that it returned is float"),
    "a vector": (text(loss=LOSS.replace("targets), l", "targets, reduction='none'), l")), "a tensor of shape (4,)"),
    "a sum": (text(loss=LOSS.replace("targets), l", "targets, reduction='sum'), l")), "returns the sum of the losses"),
    "a detached loss": (text(loss=LOSS.replace("targets), l", "targets).detach(), l")), "has no gradient"),
    "a negative weight": (text(loss=LOSS.replace(", len", ", -len")), "the weight that it returned is -4"),
    "a weight in words": (text(loss=LOSS.replace("len(targets)\n", "'4'\n")), "the weight that it returned is str '4'"),
    "a model in a pair": (text(build=BUILD.rstrip() + ", 1\n"), "build_model() returned a tuple of 2"),
    "no model": (text(build=BUILD.replace("return", "found =")), "build_model() returned None"),
    "nothing that trains": (text(build=BUILD.rstrip() + ".requires_grad_(False)\n"), "without a parameter"),
    "lazy layers": (text(build=BUILD.replace("Linear(6, 8)", "LazyLinear(8)")), "lazy layers"),
    "no batches": (text(make=MAKE.replace("return", "found =")), "returned None; return 10 micro-batches"),
    "one batch": (text(make=MAKE.rstrip() + "[:1]\n"), "gave 1 micro-batches; it must give 10"),
    "other arguments": (
        text(train=TRAIN.replace("model, batches", "model")),
        "train is called as train(model, batches)",
    ),
    "K in a default": (
        text(train=TRAIN.replace("batches)", "batches, k=ACCUMULATE)", 1).replace(", ACCUMULATE)", ", k)")),
        "train accumulates 4 micro-batches",
    ),
    "ranks": (text(head=HEAD.replace("RANKS = 1", "RANKS = 2.5")), "RANKS is 2.5"),
    "leaves": (text(head=HEAD + "raise SystemExit('no data')\n"), "cannot be imported: SystemExit: no data"),
    "leaves in train": (text(train=TRAIN.replace("optimizer.step()", "raise SystemExit(3)")), "SystemExit: 3"),
    "ends itself": (text(train=TRAIN.replace("optimizer.step()", "os._exit(0)")), "train ended its process"),
}


def files(folder: Path, texts: dict[str, str]) -> dict[str, Path]:
    found = {name: folder / f"file{number}.py" for number, name in enumerate(texts)}
    for name, path in found.items():
        path.write_text(texts[name], encoding="utf-8")
    return found


def called(path: Path) -> None:
    """Call what can be called without a rank, and then everything."""
    specification = load(path)
    batches = batches_of(specification, 10, False)
    loss_of(specification, model_of(specification), batches[0])
    audit_files([path])


def test_what_is_right_is_not_accused(tmp_path: Path) -> None:
    paths = files(tmp_path, RIGHT)
    found = audit_files(list(paths.values()))
    wrong = {name: [one.cause for one in found[path].findings] for name, path in paths.items()}
    assert wrong == {name: [] for name in RIGHT}
    assert all(one.steps > 4 for one in found.values())


def test_a_fault_is_named(tmp_path: Path) -> None:
    paths = files(tmp_path, {name: text for name, (text, _) in WRONG.items()})
    found = audit_files(list(paths.values()))
    for name, (_, words) in WRONG.items():
        causes = [one.cause for one in found[paths[name]].findings]
        assert causes, name
        assert words in causes[0], (name, causes)
        assert len(causes) == 1 or name == "weights of its own", (name, causes)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_audited_is_said(name: str, tmp_path: Path) -> None:
    (path,) = files(tmp_path, {name: REFUSED[name][0]}).values()
    with pytest.raises(ArgumentError) as error:
        called(path)
    assert REFUSED[name][1] in str(error.value)
