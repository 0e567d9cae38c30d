"""What the comparison of frameworks says is what it measured."""

import json
import math

import pytest
import torch

from tightgrad_lab.bench.frameworks import compare
from tightgrad_lab.bench.frameworks.framework import Framework, Operation
from tightgrad_lab.bench.frameworks.methods import METHODS
from tightgrad_lab.bench.frameworks.trees import random_tree
from tightgrad_lab.cli.app import run

KEYS = {
    *("framework", "version", "operation", "counterpart", "largest_relative_difference", "tightgrad_error"),
    *("framework_error", "smallest_scale", "largest_scale", "seconds", "tightgrad_seconds", "cannot"),
}


def test_command_prints_rows(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "FILES", {"torch": "pytorch", "nowhere": "pytorch"})
    assert run(["bench", "frameworks", "--trees", "1", "--repeats", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["missing"] == ["nowhere"]
    assert all(row.keys() >= KEYS for row in printed["rows"])


def test_a_framework_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One number in a thousand too large, and no clipping above 1e7."""

    def off(grads, weights, bound):
        if float(grads[-1].abs().max()) > 1e9:
            return [grad.clone() for grad in grads]
        return [grad.clamp(-bound, bound) * 1.001 for grad in grads]

    wrong = Framework(
        "wrong", "0", list, list, lambda results: None, {"value": Operation("clip", off, cannot="be right")}
    )
    row = compare._row(wrong, wrong.operations["value"], "value", seed=0, num_trees=3, repeats=1)
    assert row["largest_relative_difference"] == pytest.approx(1e-3, rel=1e-3)
    assert row["framework_error"] == pytest.approx(1e-3, rel=1e-3)
    assert row["tightgrad_error"] == 0.0
    assert row["tightgrad_smallest_scale"] == 1e-30
    assert row["tightgrad_largest_scale"] == 1e30


@pytest.mark.parametrize("identifier", METHODS)
def test_methods_clip_and_are_their_formulas(identifier: str) -> None:
    tree = random_tree(5, 1.0)
    method = METHODS[identifier]
    bound = method.bound(tree.rms, tree.numel)
    exact = method.exact(tree.grads, tree.weights, bound)
    assert compare._difference(method.ours(tree.copy(), tree.weights, bound), exact) < 1e-6
    if identifier != "norm":
        assert any(not torch.equal(one.float(), other) for one, other in zip(exact, tree.grads, strict=False))


def test_not_finite_is_infinitely_far() -> None:
    nan, one = [torch.tensor([math.nan])], [torch.tensor([1.0])]
    assert compare._difference(nan, one) == compare._difference(one, [torch.zeros(1)]) == math.inf
    assert compare._difference([torch.zeros(2)], [torch.zeros(2)]) == 0.0
