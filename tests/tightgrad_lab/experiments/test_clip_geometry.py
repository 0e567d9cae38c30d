"""Bounds leave what they should, and what a row says of a method is so."""

import math

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg
from support.row_types import wrong
from tightgrad_lab.experiments import clip_geometry
from tightgrad_lab.experiments.clip_geometry import ADAPTIVE, BINS, CHOSEN, KEPT, Settings
from tightgrad_lab.report.pairs.clip_geometry import METHODS
from tightgrad_lab.schema.clipping import ClipGeometryFigure, ClipGeometryRow

SETTINGS = Settings(steps=1, gradients=3, repeats=1, batch_size=1)
PARAMETERS = {"embedding.weight": nn.Parameter(torch.ones(30, 20)), "layer": nn.Parameter(torch.ones(40, 20))}


def stream(count: int = 3) -> list[dict[str, Tensor]]:
    """With some large entries."""
    generator = torch.Generator().manual_seed(0)
    return [
        {name: torch.randn(p.shape, generator=generator) ** 3 / 100 for name, p in PARAMETERS.items()}
        for _ in range(count)
    ]


def test_every_clipper_there_is_is_compared() -> None:
    known = {getattr(tg.clip, name).card.id for name in dir(tg.clip) if hasattr(getattr(tg.clip, name), "card")}
    known.remove("per_optimizer")  # by_name, with groups that several optimizers name
    assert CHOSEN.keys() | ADAPTIVE.keys() == known == METHODS.keys()


@pytest.mark.parametrize("name", [name for name in CHOSEN if name != "by_name"])
def test_a_chosen_bound_leaves_the_share(name: str) -> None:
    clipper = clip_geometry.chosen(CHOSEN[name], PARAMETERS, stream())
    row = clip_geometry.row(name, clipper, PARAMETERS, stream(), SETTINGS)
    assert sum(row["kept"][: clip_geometry.FEW]) / clip_geometry.FEW == pytest.approx(KEPT, abs=2e-3)
    assert all(0 < cosine <= 1 for cosine in row["cosine"])
    assert (min(row["cosine"]) > 1 - 1e-9) == (name == "global_norm")


def test_bias_is_an_angle_between_means() -> None:
    """One of two orthogonal gradients is limited to a tenth: the mean turns."""
    one, other = torch.zeros(2), torch.zeros(2)
    one[0], other[1] = 10.0, 1.0
    parameters = {"w": nn.Parameter(torch.ones(2))}
    row = clip_geometry.row("global_norm", tg.clip.GlobalNorm(1.0), parameters, [{"w": one}, {"w": other}], SETTINGS)
    assert wrong(row, ClipGeometryRow, "row") == []
    angle = math.atan2(1, 1) - math.atan2(1, 10)
    assert row["bias"] == pytest.approx(math.sin(angle), rel=1e-6)
    assert row["kept"] == pytest.approx([0.1, 1.0])
    assert row["memory_bytes_per_parameter"] > 0


def test_the_picture_is_true() -> None:
    (grads,) = stream(1)
    found = clip_geometry.picture(PARAMETERS, grads)
    assert wrong(found, ClipGeometryFigure, "figure") == []
    before = clip_geometry.flat(grads)
    assert found["norm"] == pytest.approx(float(before.norm()))
    assert found["ways"]["norm"]["cosine"] == pytest.approx(1.0, abs=1e-9)
    assert found["ways"]["norm"]["length"] == pytest.approx(0.5, rel=1e-6)
    assert found["ways"]["value"]["length"] == pytest.approx(0.5, rel=2e-3)
    clamped = before.clamp(-found["max_value"], found["max_value"])
    cosine = float(before @ clamped / before.norm() / clamped.norm())
    assert found["ways"]["value"]["cosine"] == pytest.approx(cosine, rel=1e-5)
    assert found["ways"]["value"]["changed"] == pytest.approx(float((clamped != before).double().mean()), abs=1e-3)
    for shares in (found["before"], *(way["histogram"] for way in found["ways"].values())):
        assert len(shares) == BINS
        assert sum(shares) == pytest.approx(1.0, abs=1e-3)


def test_gradients_are_those_of_the_trained_model() -> None:
    model, found = clip_geometry.gradients(
        Settings(steps=1, gradients=1, repeats=1, batch_size=1), lambda share, text: None
    )
    assert found[0].keys() == dict(model.named_parameters()).keys()
