import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD

from support.layerwise import make_gradients, make_parameters, train
from tightgrad.core.errors import ConfigError
from tightgrad.scaling import LARS


def paper(
    weights: list[np.ndarray], gradients: list[list[np.ndarray | None]], lr: float, m: float, beta: float, eta: float
) -> list[np.ndarray]:
    """Algorithm 1 of arXiv:1708.03888 in float64, with a ratio of 1 where the weights or the gradient are zero."""
    velocities = [np.zeros_like(w) for w in weights]
    for row in gradients:
        for index, g in enumerate(row):
            if g is None:
                continue
            w = weights[index]
            weight_norm, grad_norm = np.sqrt((w * w).sum()), np.sqrt((g * g).sum())
            local_lr = 1.0
            if weight_norm > 0 and grad_norm > 0:
                local_lr = eta * weight_norm / (grad_norm + beta * weight_norm)
            velocities[index] = m * velocities[index] + lr * local_lr * (g + beta * w)
            weights[index] = w - velocities[index]
    return weights


@pytest.mark.parametrize("lr_position", ["outside", "inside"])
def test_it_is_the_papers_algorithm(lr_position: str) -> None:
    parameters, gradients = make_parameters(torch.float64), make_gradients(torch.float64)
    expected = paper(
        [param.detach().numpy().copy() for param in parameters],
        [[None if grad is None else grad.numpy() for grad in row] for row in gradients],
        lr=0.3,
        m=0.8,
        beta=0.05,
        eta=0.2,
    )
    optimizer = LARS(
        parameters, 0.3, momentum=0.8, weight_decay=0.05, trust_coefficient=0.2, eps=0.0, lr_position=lr_position
    )
    for have, want in zip(train(optimizer, gradients), expected, strict=True):
        np.testing.assert_allclose(have.numpy(), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("rule", "momentum"), [("heavy_ball", 0.0), ("heavy_ball", 0.9), ("nesterov", 0.9)])
def test_without_adaptation_it_is_torch_sgd(rule: str, momentum: float) -> None:
    settings = {"lr": 0.05, "momentum": momentum, "weight_decay": 0.1}
    lars = LARS(make_parameters(torch.float64), **settings, momentum_rule=rule, layer_adaptation="none")
    sgd = SGD(make_parameters(torch.float64), **settings, nesterov=rule == "nesterov")
    gradients = make_gradients(torch.float64)
    for have, want in zip(train(lars, gradients), train(sgd, gradients), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-14)


@given(scale=st.floats(1e-6, 1e6), trust=st.floats(1e-4, 1.0))
def test_the_step_is_a_share_of_the_weights_whatever_the_gradients_size(scale: float, trust: float) -> None:
    start = torch.tensor([3.0, 4.0], dtype=torch.float64)
    param = torch.nn.Parameter(start.clone())
    grad = scale * torch.tensor([1.0, -2.0], dtype=torch.float64)
    train(LARS([param], lr=2.0, trust_coefficient=trust, eps=0.0), [[grad]])
    step = param.detach() - start
    assert float(step.norm()) == pytest.approx(2.0 * trust * 5.0, rel=1e-9)
    assert float(torch.cosine_similarity(step, grad, dim=0)) == pytest.approx(-1.0, rel=1e-9)


@pytest.mark.parametrize(
    ("weights", "grads", "weight_decay", "expected"),
    [
        ([0.0, 0.0], [1.0, 2.0], 0.5, [-0.1, -0.2]),  # zero weights: plain SGD
        ([1.0, 2.0], [0.0, 0.0], 0.5, [0.95, 1.9]),  # zero gradient: plain weight decay
        ([0.0, 0.0], [0.0, 0.0], 0.5, [0.0, 0.0]),
    ],
)
def test_zeros_get_a_ratio_of_one(
    weights: list[float], grads: list[float], weight_decay: float, expected: list[float]
) -> None:
    param = torch.nn.Parameter(torch.tensor(weights))
    (have,) = train(LARS([param], lr=0.1, weight_decay=weight_decay, eps=0.0), [[torch.tensor(grads)]])
    torch.testing.assert_close(have, torch.tensor(expected))


def test_eps_bounds_the_ratio() -> None:
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    grad = torch.tensor([1e-3, 0.0])
    (have,) = train(LARS([param], lr=1.0, trust_coefficient=0.1, eps=1e-3), [[grad]])
    torch.testing.assert_close(have, torch.tensor([3.0 - 0.1 * 5.0 / 2e-3 * 1e-3, 4.0]))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"momentum": 1.5}, "momentum"),
        ({"trust_coefficient": 0.0}, "trust_coefficient"),
        ({"momentum_rule": "polyak"}, "nesterov"),
        ({"lr_position": "both"}, "inside"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LARS(make_parameters(), lr=0.1, **settings)
