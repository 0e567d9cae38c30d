"""AutoClip, ZClip and AdaGC against plain re-statements of their papers, and what they do at NaN."""

import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

import tightgrad as tg
from tightgrad.clip.norm import total_norm
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import MODEL, Grads, State

NORMS = [float(norm) for norm in np.random.default_rng(0).lognormal(0.0, 0.3, 60)]
NORMS[40] = 30.0
NORMS[50] = 8.0


def gradient(norm: float) -> Grads:
    return {"weight": torch.full((4,), norm / 2), "bias": torch.zeros(2)}


def run(clipper: Clipper, norms: list[float]) -> tuple[list[float], State]:
    """The norms after clipping, and the last state."""
    state: State = {}
    clipped_norms = []
    for norm in norms:
        grads = gradient(norm)
        clipped = clipper.clip_(grads, {}, total_norm, state)
        state = {slot: {**state.get(slot, {}), **values} for slot, values in clipped.state.items()}
        clipped_norms.append(float(total_norm(list(grads.values()))))
        if math.isfinite(norm):
            assert clipped_norms[-1] == pytest.approx(norm * float(clipped.clip_coef), rel=1e-6)
    return clipped_norms, state


def autoclip_reference(norms: list[float], percentile: float, history: int) -> list[float]:
    return [
        min(norm, float(np.percentile(norms[max(0, step + 1 - history) : step + 1], percentile)))
        for step, norm in enumerate(norms)
    ]


@pytest.mark.parametrize(("percentile", "history"), [(10.0, 1000), (50.0, 7), (100.0, 5)])
def test_autoclip_is_the_percentile_of_the_history(percentile: float, history: int) -> None:
    clipped, state = run(tg.clip.AutoClip(percentile, history), NORMS)
    assert clipped == pytest.approx(autoclip_reference(NORMS, percentile, history), rel=1e-5)
    assert state["autoclip_norms"][MODEL].shape == (history,)


def zclip_reference(
    norms: list[float], rule: str, warmup: int = 25, alpha: float = 0.97, limit: float = 2.5
) -> list[float]:
    """Algorithm 1 of arXiv:2504.02507."""
    mean, variance, done = statistics.fmean(norms[:warmup]), statistics.pvariance(norms[:warmup]), norms[:warmup]
    for norm in norms[warmup:]:
        std = math.sqrt(variance)
        z = (norm - mean) / (std + 1e-6)
        if z > limit:
            norm = mean + {"reciprocal": std * limit / (z / limit), "threshold": std * limit, "mean": 0.0}[rule]
        mean = alpha * mean + (1 - alpha) * norm
        variance = alpha * variance + (1 - alpha) * (norm - mean) ** 2
        done = [*done, norm]
    return done


@pytest.mark.parametrize("rule", ["reciprocal", "threshold", "mean"])
def test_zclip_is_the_papers_algorithm(rule: str) -> None:
    clipped, _ = run(tg.clip.ZClip(rule=rule), NORMS)
    assert clipped == pytest.approx(zclip_reference(NORMS, rule), rel=1e-5)
    assert clipped[40] < 5.0
    assert clipped[:25] == pytest.approx(NORMS[:25])


def test_zclip_with_a_fixed_bound_from_the_first_step() -> None:
    clipped, _ = run(tg.clip.ZClip(max_norm=1.0), NORMS)
    assert max(clipped) <= 1.0 + 1e-6


def adagc_reference(norms: list[float], warmup: int, relative: float, beta: float, max_norm: float) -> list[float]:
    gamma, done = math.inf, []
    for step, norm in enumerate(norms):
        clipped = min(norm, max_norm if step < warmup else relative * gamma)
        gamma = min(gamma, clipped) if step < warmup else beta * gamma + (1 - beta) * clipped
        done.append(clipped)
    return done


def test_adagc_is_the_papers_algorithm() -> None:
    clipped, state = run(tg.clip.AdaGC(warmup_steps=10), NORMS)
    assert clipped == pytest.approx(adagc_reference(NORMS, 10, 1.05, 0.98, 1.0), rel=1e-5)
    assert set(state["adagc_gamma"]) == {"weight", "bias"}


def test_adagc_lets_a_tensor_start_late() -> None:
    """A gradient that was zero in the warm-up (an adapter's second matrix) is not stopped for good."""
    clipper = tg.clip.AdaGC(warmup_steps=2)
    state: State = {}
    for late in (0.0, 0.0, 0.5, 0.5):
        grads = {"weight": torch.ones(4), "late": torch.full((1,), late)}
        state = {**state, **clipper.clip_(grads, {}, total_norm, state).state}
    assert float(grads["late"]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "clipper", [tg.clip.AutoClip(50.0, 20), tg.clip.ZClip(warmup_steps=5), tg.clip.AdaGC(warmup_steps=5)]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("step", [0, 3, 45])
def test_learns_only_from_finite_norms(clipper: Clipper, bad: float, step: int) -> None:
    without, expected = run(clipper, NORMS)
    with_bad, state = run(clipper, [*NORMS[:step], bad, *NORMS[step:]])
    assert with_bad[:step] + with_bad[step + 1 :] == without
    for slot, values in expected.items():
        for name, tensor in values.items():
            assert torch.equal(state[slot][name], tensor), (slot, name)


@pytest.mark.parametrize("clipper", [tg.clip.AutoClip(), tg.clip.ZClip(), tg.clip.AdaGC()])
def test_state_is_declared_and_not_changed_in_place(clipper: Clipper) -> None:
    _, state = run(clipper, NORMS[:30])
    assert set(state) == {slot.name for slot in clipper.slots}
    before = {slot: {name: tensor.clone() for name, tensor in values.items()} for slot, values in state.items()}
    grads = gradient(50.0)
    clipper.clip_(grads, {}, total_norm, state)
    for slot, values in before.items():
        for name, tensor in values.items():
            torch.testing.assert_close(state[slot][name], tensor, rtol=0, atol=0, equal_nan=True)


class Counted(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes reads of a tensor's value by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.reads += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))  # type: ignore[operator]


@pytest.mark.parametrize("clipper", [tg.clip.AutoClip(), tg.clip.ZClip(), tg.clip.GlobalNorm(1.0)])
def test_the_factor_needs_no_look_at_a_value(clipper: tg.clip.GlobalNorm) -> None:
    def norm(tensors: list[Tensor], norm_type: float = 2.0) -> Tensor:
        return torch.ones(())

    with Counted() as counted:
        clipper.factor(gradient(1.0), norm, {})
    assert counted.reads == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: tg.clip.AutoClip(percentile=0.0),
        lambda: tg.clip.AutoClip(history=0),
        lambda: tg.clip.ZClip(alpha=1.0),
        lambda: tg.clip.ZClip(rule="other"),
        lambda: tg.clip.AdaGC(relative=0.9),
        lambda: tg.clip.AdaGC(beta=1.0),
    ],
)
def test_settings_are_checked(make: object) -> None:
    with pytest.raises(tg.ConfigError):
        make()  # type: ignore[operator]
