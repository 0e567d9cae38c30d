"""Adam's settings at another batch: the half-life of the second moment is the same number of items."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tightgrad as tg
from tightgrad.core.errors import ConfigError

BETAS = (0.9, 0.95)


def half_life(beta2: float, batch: float) -> float:
    """In items."""
    return batch * math.log(0.5) / math.log(beta2)


@given(st.floats(0.5, 0.9999), st.integers(1, 4096), st.integers(1, 4096))
def test_the_half_life_stays_the_same_number_of_items(beta2: float, base: int, batch: int) -> None:
    if not 1e-300 < beta2 ** (batch / base) < 1 - 1e-12:
        return
    found = tg.scale_adam(1e-3, (0.9, beta2), base, batch)
    assert half_life(found["betas"][1], batch) == pytest.approx(half_life(beta2, base), rel=1e-6)
    assert found["lr"] == pytest.approx(1e-3 * math.sqrt(batch / base), rel=1e-12)
    assert found["betas"][0] == 0.9


def test_small_steps_forget_as_much_as_one_large_one() -> None:
    small = tg.scale_adam(1e-3, BETAS, 64, 16)["betas"][1]
    assert small**4 == pytest.approx(0.95, rel=1e-12)


def test_the_numbers_of_the_paper() -> None:
    """Marek et al. train batch 512 with 0.95 and a rate of 0.0048, batch 1 with 0.9999 and 0.0024."""
    found = tg.scale_adam(0.0048, BETAS, 512, 1, "none")
    assert round(found["betas"][1], 4) == 0.9999
    assert found["lr"] == 0.0048


def test_an_optimizer_takes_it_and_the_second_moment_decays_so() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([weight], **tg.scale_adam(1e-3, BETAS, 8, 2))
    for gradient in (1.0, 0.0, 0.0, 0.0, 0.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    beta2 = 0.95**0.25
    assert float(optimizer.state[weight]["exp_avg_sq"]) == pytest.approx((1 - beta2) * 0.95, rel=1e-5)


@pytest.mark.parametrize(
    ("betas", "base", "batch", "says"),
    [
        ((0.9, 1.0), 8, 8, "beta2=1 must be below 1"),
        ((1.0, 0.95), 8, 8, "beta1=1 must be below 1"),
        ((-0.1, 0.95), 8, 8, "beta1"),
        ((0.9, 0.0), 8, 8, "beta2"),
        ((0.9, 0.95), 0, 8, "base_batch"),
        ((0.9, 0.95), 8, math.nan, "batch"),
        ((0.9, 0.95), 1, 10**6, "half-life is 13.5 items"),
        ((0.9, 1 - 1e-16), 10**6, 1, "cannot use"),
    ],
)
def test_what_adam_cannot_use_is_named(betas: tuple[float, float], base: float, batch: float, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tg.scale_adam(1e-3, betas, base, batch)
