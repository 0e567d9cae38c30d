import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import AdamW

from support.layerwise import make_gradients, make_parameters, train
from tightgrad.core.errors import ConfigError
from tightgrad.scaling import LAMB


def paper(
    weights: list[np.ndarray],
    gradients: list[list[np.ndarray | None]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> list[np.ndarray]:
    """Algorithm 2 of arXiv:1904.00962 in float64, with phi(z) = z and a ratio of 1 where a norm is zero."""
    beta1, beta2 = betas
    first, second = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    steps = [0] * len(weights)
    for row in gradients:
        for index, g in enumerate(row):
            if g is None:
                continue
            steps[index] += 1
            first[index] = beta1 * first[index] + (1 - beta1) * g
            second[index] = beta2 * second[index] + (1 - beta2) * g * g
            m_hat = first[index] / (1 - beta1 ** steps[index])
            v_hat = second[index] / (1 - beta2 ** steps[index])
            update = m_hat / (np.sqrt(v_hat) + eps) + decay * weights[index]
            weight_norm, update_norm = np.sqrt((weights[index] ** 2).sum()), np.sqrt((update**2).sum())
            ratio = weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
            weights[index] = weights[index] - lr * ratio * update
    return weights


@pytest.mark.parametrize("implementation", ["foreach", "single_tensor"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_the_papers_algorithm(decay: float, implementation: str) -> None:
    parameters, gradients = make_parameters(torch.float64), make_gradients(torch.float64)
    settings = {"betas": (0.8, 0.95), "eps": 1e-3}
    expected = paper(
        [param.detach().numpy().copy() for param in parameters],
        [[None if grad is None else grad.numpy() for grad in row] for row in gradients],
        lr=0.3,
        decay=decay,
        **settings,
    )
    optimizer = LAMB(parameters, lr=0.3, weight_decay=decay, implementation=implementation, **settings)
    for have, want in zip(train(optimizer, gradients), expected, strict=True):
        np.testing.assert_allclose(have.numpy(), want, rtol=1e-12, atol=1e-14)


def test_without_adaptation_it_is_torch_adamw() -> None:
    settings = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    gradients = make_gradients(torch.float64)
    lamb = train(LAMB(make_parameters(torch.float64), **settings, layer_adaptation="none"), gradients)
    adamw = train(AdamW(make_parameters(torch.float64), **settings), gradients)
    for have, want in zip(lamb, adamw, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-14)


@given(scale=st.floats(1e-3, 1e3), num_steps=st.integers(1, 4))
def test_each_step_is_a_share_of_the_weights(scale: float, num_steps: int) -> None:
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
    optimizer = LAMB([param], lr=0.2)
    for _ in range(num_steps):
        before = param.detach().clone()
        train(optimizer, [[scale * torch.tensor([1.0, -2.0], dtype=torch.float64)]])
        assert float((param.detach() - before).norm()) == pytest.approx(0.2 * float(before.norm()), rel=1e-9)


@pytest.mark.parametrize(
    ("weights", "grads", "expected"),
    [
        ([0.0, 0.0], [1.0, -2.0], [-0.1, 0.1]),  # zero weights: Adam's first step
        ([1.0, 2.0], [0.0, 0.0], [1.0, 2.0]),  # zero update
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_zeros_get_a_ratio_of_one(weights: list[float], grads: list[float], expected: list[float]) -> None:
    param = torch.nn.Parameter(torch.tensor(weights))
    (have,) = train(LAMB([param], lr=0.1, weight_decay=0.0, eps=1e-9), [[torch.tensor(grads)]])
    torch.testing.assert_close(have, torch.tensor(expected))


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9)], ids=str)
def test_betas_are_checked(betas: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="beta"):
        LAMB(make_parameters(), lr=0.1, betas=betas)
