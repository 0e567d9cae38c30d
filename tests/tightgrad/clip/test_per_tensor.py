"""PerTensorNorm and BlockRMS: a factor for each parameter."""

import math

import pytest
import torch

import tightgrad as tg
from tightgrad.clip.norm import total_norm
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import Grads


def gradients() -> Grads:
    return {"large": torch.full((3, 3), 2.0), "small": torch.full((4,), 0.01), "zero": torch.zeros(2)}


@pytest.mark.parametrize(
    ("clipper", "large"), [(tg.clip.PerTensorNorm(0.6), 0.2), (tg.clip.BlockRMS(0.3), 0.3)], ids=["norm", "rms"]
)
def test_each_tensor_alone(clipper: Clipper, large: float) -> None:
    grads = gradients()
    before = total_norm(list(grads.values()))
    versions = grads["small"]._version, grads["zero"]._version
    clipped = clipper.clip_(grads, {}, total_norm, {})
    torch.testing.assert_close(grads["large"], torch.full((3, 3), large))
    assert (grads["small"]._version, grads["zero"]._version) == versions
    assert float(clipped.total_norm) == float(before)
    assert float(clipped.clip_coef) == pytest.approx(float(total_norm(list(grads.values())) / before), rel=1e-6)


def test_one_bad_tensor_leaves_the_others_alone() -> None:
    grads = {"bad": torch.tensor([math.nan, 1.0]), "good": torch.full((4,), 5.0)}
    tg.clip.PerTensorNorm(1.0).clip_(grads, {}, total_norm, {})
    assert float(grads["good"].norm()) == pytest.approx(1.0)
    assert bool(grads["bad"].isnan().all())


@pytest.mark.parametrize("make", [tg.clip.PerTensorNorm, tg.clip.BlockRMS])
def test_settings_are_checked(make: type[tg.clip.PerTensorNorm]) -> None:
    with pytest.raises(tg.ConfigError):
        make(0.0)
