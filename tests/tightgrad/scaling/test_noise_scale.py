import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightgrad.core.errors import ConfigError, StateMismatchError
from tightgrad.scaling import NoiseEstimate, NoiseScale, estimate_noise, small_batch_mean

# Of a mean over independent windows, the chance to be more than 5 standard errors off is below 1e-6.
MOST_STANDARD_ERRORS = 5.0
WINDOWS = 20_000
DIM = 48
SIGMA = 0.7
TRUE_GRADIENT = torch.linspace(-0.4, 0.5, DIM, dtype=torch.float64)
GRADIENT_SQUARE = float(TRUE_GRADIENT.square().sum())
NOISE_TRACE = DIM * SIGMA**2


def synthetic(sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """|g_i|^2 of small batches of these sizes (windows, small batches) and |g_B|^2 of whole windows (windows,)."""
    generator = torch.Generator().manual_seed(11)
    b = torch.tensor(sizes, dtype=torch.float64)
    noise = torch.randn(WINDOWS, len(sizes), DIM, generator=generator, dtype=torch.float64)
    small = TRUE_GRADIENT + SIGMA * noise / b.sqrt()[:, None]
    big = (b[:, None] * small).sum(dim=1) / b.sum()
    return small.square().sum(dim=-1), big.square().sum(dim=-1)


def errors_off(samples: torch.Tensor, truth: float) -> float:
    """Distance of the mean from the truth, in standard errors."""
    return abs(float(samples.mean()) - truth) / (float(samples.std()) / math.sqrt(len(samples)))


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (1, 2, 3, 6), (1, 31)], ids=str)
def test_both_estimates_are_unbiased(sizes: tuple[int, ...]) -> None:
    b = torch.tensor(sizes, dtype=torch.float64)
    squares, big_square = synthetic(sizes)
    small_square, small_batch = small_batch_mean((b * squares).sum(dim=1), float(b.sum()), len(sizes))
    estimate = estimate_noise(small_square, small_batch, big_square, float(b.sum()))
    assert errors_off(estimate.gradient_square, GRADIENT_SQUARE) < MOST_STANDARD_ERRORS
    assert errors_off(estimate.noise_trace, NOISE_TRACE) < MOST_STANDARD_ERRORS
    # The test can tell: the plain squared norm of the big batch is biased by tr(S) / B.
    assert errors_off(big_square, GRADIENT_SQUARE) > 2 * MOST_STANDARD_ERRORS


def test_one_small_batch_of_the_window_is_enough() -> None:
    squares, big_square = synthetic((4, 4, 4, 4))
    estimate = estimate_noise(squares[:, 0], 4, big_square, 16)
    assert errors_off(estimate.gradient_square, GRADIENT_SQUARE) < MOST_STANDARD_ERRORS
    assert errors_off(estimate.noise_trace, NOISE_TRACE) < MOST_STANDARD_ERRORS


def test_running_averages_find_the_noise_scale() -> None:
    sizes = (4, 4, 4, 4)
    squares, big_square = synthetic(sizes)
    noise = NoiseScale(decay=0.999)
    state = noise.initial()
    for small, big in zip(squares.mean(dim=1)[:4000], big_square[:4000], strict=True):
        state = noise.updated(state, estimate_noise(small, 4, big, 16))
    # An average of decay d has the variance of (1 + d) / (1 - d) samples; both relative errors add to the ratio's.
    samples = estimate_noise(squares.mean(dim=1), 4, big_square, 16)
    effective = (1 + noise.decay) / (1 - noise.decay)
    relative = [
        float(values.std()) / truth / math.sqrt(effective)
        for values, truth in ((samples.gradient_square, GRADIENT_SQUARE), (samples.noise_trace, NOISE_TRACE))
    ]
    bound = MOST_STANDARD_ERRORS * sum(relative)
    assert bound < 0.2
    assert float(noise.value(state)) == pytest.approx(NOISE_TRACE / GRADIENT_SQUARE, rel=bound)


reasonable = st.floats(1e-3, 1e3)


@given(square=reasonable, trace=reasonable, small=st.floats(1.0, 100.0), factor=st.floats(1.5, 100.0))
def test_expectations_give_the_truth_back(square: float, trace: float, small: float, factor: float) -> None:
    big = small * factor
    estimate = estimate_noise(square + trace / small, small, square + trace / big, big)
    scale = square + trace
    assert float(estimate.gradient_square) == pytest.approx(square, rel=1e-9, abs=1e-12 * scale)
    assert float(estimate.noise_trace) == pytest.approx(trace, rel=1e-9, abs=1e-9 * small * scale)


@given(st.lists(st.tuples(st.floats(0.1, 10.0), st.integers(1, 9)), min_size=2, max_size=6))
def test_small_batches_add_up_over_ranks(batches: list[tuple[float, int]]) -> None:
    """Sums over two ranks, then the mean, is the mean over all."""
    halves = [batches[:1], batches[1:]]
    parts = [(sum(b * sq for sq, b in half), sum(b for _, b in half), len(half)) for half in halves]
    square, batch = small_batch_mean(*(sum(column) for column in zip(*parts, strict=True)))
    assert float(batch) == pytest.approx(sum(b for _, b in batches) / len(batches))
    assert float(square * batch * len(batches)) == pytest.approx(sum(b * sq for sq, b in batches))


@pytest.mark.parametrize(("small", "big"), [(4, 4), (8, 4), (0, 4)])
def test_a_window_that_cannot_tell_changes_nothing(small: float, big: float) -> None:
    estimate = estimate_noise(3.0, small, 2.0, big)
    assert math.isnan(estimate.gradient_square)
    assert math.isnan(estimate.noise_trace)
    noise = NoiseScale()
    state = noise.updated(noise.initial(), estimate_noise(3.0, 4, 1.5, 16))
    assert noise.updated(state, estimate) == state


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nonfinite_norms_are_not_remembered(value: float) -> None:
    noise = NoiseScale()
    state = noise.updated(noise.initial(), estimate_noise(3.0, 4, 1.5, 16))
    assert noise.updated(state, estimate_noise(value, 4, 1.5, 16)) == state
    assert noise.updated(state, estimate_noise(3.0, 4, value, 16)) == state


def test_averages_by_hand() -> None:
    noise = NoiseScale(decay=0.5)
    one, two = (NoiseEstimate(torch.tensor(a), torch.tensor(b)) for a, b in ((1.0, 8.0), (4.0, 2.0)))
    initial = noise.initial()
    state = noise.updated(noise.updated(initial, one), two)
    mean = noise.averages(state)
    assert float(mean.gradient_square) == pytest.approx((0.25 * 1 + 0.5 * 4) / 0.75)
    assert float(mean.noise_trace) == pytest.approx((0.25 * 8 + 0.5 * 2) / 0.75)
    assert float(noise.value(state)) == pytest.approx(3.0 / 2.25)
    assert initial == noise.initial(), "the state before is left as it was"


def test_no_value_without_a_gradient() -> None:
    noise = NoiseScale()
    assert math.isnan(noise.value(noise.initial()))
    state = noise.updated(noise.initial(), NoiseEstimate(torch.tensor(-1.0), torch.tensor(2.0)))
    assert math.isnan(noise.value(state))


def test_a_foreign_state_is_refused() -> None:
    with pytest.raises(StateMismatchError, match="noise_trace"):
        NoiseScale().value({"exp_avg": torch.zeros(())})


@pytest.mark.parametrize("decay", [1.0, -0.1, math.nan])
def test_decay_is_checked(decay: float) -> None:
    with pytest.raises(ConfigError, match="decay"):
        NoiseScale(decay)
