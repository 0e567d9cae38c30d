import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from tightgrad.core.errors import ConfigError, UnsupportedError
from tightgrad.scaling import LAMB, LARS, correct_momentum_

# Warm-up, then a drop by ten, then a rise.
RATES = [0.01, 0.02, 0.04, 0.08, 0.08, 0.008, 0.008, 0.02]


def run(optimizer: Optimizer, parameter: Tensor, correct: bool) -> Tensor:
    """Minimise a quadratic under the schedule; correct the momentum at each change if asked to."""
    curvature = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
    before = RATES[0]
    for rate in RATES:
        optimizer.param_groups[0]["lr"] = rate
        if correct and rate != before:
            correct_momentum_(optimizer, before, rate)
        before = rate
        parameter.grad = curvature * parameter.detach()
        optimizer.step()
    return parameter.detach()


def start() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))


def inside(parameter: Tensor, **settings: object) -> LARS:
    return LARS([parameter], lr=RATES[0], lr_position="inside", **settings)


@pytest.mark.parametrize("rule", ["heavy_ball", "nesterov"])
def test_torch_sgd_equals_the_inside_form_with_correction_and_not_without(rule: str) -> None:
    parameter = start()
    sgd = SGD([parameter], lr=RATES[0], momentum=0.9, nesterov=rule == "nesterov", weight_decay=0.01)
    outside = run(sgd, parameter, correct=False)
    settings = {"layer_adaptation": "none", "momentum_rule": rule, "weight_decay": 0.01}
    corrected, raw = start(), start()
    torch.testing.assert_close(run(inside(corrected, **settings), corrected, True), outside, rtol=1e-12, atol=1e-14)
    difference = run(inside(raw, **settings), raw, False) - outside
    assert float(difference.norm()) > 0.05 * float(outside.norm())


def test_lars_outside_equals_lars_inside_with_correction() -> None:
    parameter, corrected = start(), start()
    settings = {"trust_coefficient": 0.5, "weight_decay": 0.01}
    outside = run(LARS([parameter], lr=RATES[0], **settings), parameter, correct=False)
    torch.testing.assert_close(run(inside(corrected, **settings), corrected, True), outside, rtol=1e-12, atol=1e-14)


def test_each_group_has_its_own_ratio() -> None:
    first, second, unused = start(), start(), start()
    groups = [{"params": [first, unused]}, {"params": [second]}]
    optimizer = LARS(groups, lr=0.1, lr_position="inside", layer_adaptation="none")
    first.grad, second.grad = torch.ones_like(first), torch.ones_like(second)
    optimizer.step()
    correct_momentum_(optimizer, [0.1, 0.1], [0.2, 0.05])
    expected = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(optimizer.state[first]["momentum_buffer"], 0.2 * expected)
    torch.testing.assert_close(optimizer.state[second]["momentum_buffer"], 0.05 * expected)
    assert unused not in optimizer.state


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD([p], lr=0.1, momentum=0.9),
        lambda p: Adam([p], lr=0.1),
        lambda p: LAMB([p], lr=0.1),
        lambda p: LARS([p], lr=0.1),
    ],
    ids=["SGD", "Adam", "LAMB", "LARS outside"],
)
def test_it_refuses_optimizers_with_the_rate_outside(make) -> None:
    with pytest.raises(UnsupportedError, match="outside of its momentum"):
        correct_momentum_(make(start()), 0.1, 0.2)


def test_a_refusal_changes_no_buffer() -> None:
    parameter = start()
    groups = [{"params": [parameter]}, {"params": [start()], "lr_position": "outside"}]
    optimizer = LARS(groups, lr=0.1, lr_position="inside")
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    before = optimizer.state[parameter]["momentum_buffer"].clone()
    with pytest.raises(UnsupportedError, match="group 1"):
        correct_momentum_(optimizer, 0.1, 0.2)
    assert torch.equal(optimizer.state[parameter]["momentum_buffer"], before)


@pytest.mark.parametrize(
    ("old", "new", "named"), [(0.0, 0.1, "old_lr"), (0.1, -0.1, "new_lr"), ([0.1, 0.1], 0.1, "2 rates")]
)
def test_it_refuses_rates(old: object, new: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        correct_momentum_(inside(start()), old, new)
