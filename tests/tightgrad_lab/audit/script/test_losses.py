"""A loss that is computed target by target has torch's value and gradient, and says which targets count."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tightgrad_lab.audit.script import losses

SCORES = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 4, 2, -100, 1, 1])
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 1.0, 3.0])
SHARES = SCORES.softmax(-1).roll(1, 0)
CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("cross_entropy", CLASSES, {}),
    ("cross_entropy", CLASSES, {"weight": WEIGHTS, "label_smoothing": 0.2}),
    ("cross_entropy", CLASSES, {"reduction": "sum"}),
    ("cross_entropy", SHARES, {"label_smoothing": 0.1}),
    ("nll_loss", CLASSES, {"weight": WEIGHTS}),
    ("mse_loss", SHARES, {}),
    ("smooth_l1_loss", SHARES, {"beta": 0.3}),
    ("binary_cross_entropy_with_logits", SHARES, {"pos_weight": torch.full((5,), 2.0)}),
    ("kl_div", SHARES, {"reduction": "batchmean"}),
    ("kl_div", SHARES, {"reduction": "sum"}),
]


def wrapped(name: str, seen: losses.Seen) -> Any:
    reduce = losses._by_class if name in losses.BY_CLASS else losses._by_element
    return losses._wrapped(name, getattr(F, name), reduce, seen)


@pytest.mark.parametrize(("name", "target", "more"), CASES)
def test_value_and_gradient_are_torchs(name: str, target: Tensor, more: dict[str, Any]) -> None:
    seen: list[tuple[int, bool]] = []

    def take(function: str, each: Tensor, valid: Tensor | None, own: bool) -> None:
        seen.append((each.numel() if valid is None else int(valid.sum()), own))

    found = []
    for loss in (getattr(F, name), wrapped(name, take)):
        scores = SCORES.clone().requires_grad_()
        value = loss(scores, target, **more)
        value.backward()
        found.append((value.detach(), scores.grad))
    torch.testing.assert_close(found[1][0], found[0][0])
    torch.testing.assert_close(found[1][1], found[0][1])
    count = 5 if target is CLASSES else 6 if name == "cross_entropy" else SCORES.numel()
    assert seen == [(count, False)]


def test_a_mean_of_nothing_is_nan_as_in_torch() -> None:
    nothing = torch.full((6,), -100)
    scores = SCORES.clone().requires_grad_()
    value = wrapped("cross_entropy", lambda *seen: None)(scores, nothing)
    assert torch.isnan(value)
    assert torch.isnan(F.cross_entropy(SCORES, nothing))


def test_losses_without_a_gradient_are_left_alone() -> None:
    def never(*seen: object) -> None:
        raise AssertionError("nothing is to be seen")

    assert torch.equal(wrapped("cross_entropy", never)(SCORES, CLASSES), F.cross_entropy(SCORES, CLASSES))
