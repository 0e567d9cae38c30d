"""The measurement runs at a small size, counts memory right, and prints what DESIGN.md promises."""

import json

import pytest
import torch

import tightgrad as tg
from tightgrad_lab.bench import clip as measurement
from tightgrad_lab.bench.clip_peers import clip_peers
from tightgrad_lab.bench.passes import MemoryTraffic
from tightgrad_lab.errors import ArgumentError

KEYS = {"name", "optimizer", "num_parameters", "num_tensors", "active", "ratio_to_torch"}


def test_rows() -> None:
    result = measurement.run((20_000,), (10,), repeats=1, warm_up=0)
    rows = result["rows"]
    json.dumps(rows, allow_nan=False)
    assert all(set(row) >= KEYS for row in rows)
    assert all(row["ratio_to_torch"] > 0 for row in rows)
    assert {row["optimizer"] for row in rows} == {"none", *measurement.OPTIMIZERS}
    assert {row["active"] for row in rows if row["name"] == "clip_grad_norm"} == {True, False}


def test_one_row_alone_is_measured() -> None:
    rows = measurement.run((20_000,), (10,), repeats=3, warm_up=0, names=("clip_grad_norm",))["rows"]
    assert [row["name"] for row in rows] == ["clip_grad_norm"] * 2
    for row in rows:
        first, third = row["ratio_quartiles"]
        assert first <= row["ratio_to_torch"] <= third


def test_the_row_with_a_bound_of_its_own_is_measured_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "PAIRS", 2)
    monkeypatch.setattr(measurement, "PAIRS_OF", {"clip_grad_norm": 5})
    rows = measurement.run((1000,), (10,), warm_up=0, names=("clip_grad_norm", "fold"))["rows"]
    assert {(row["name"], row["pairs"]) for row in rows} == {("clip_grad_norm", 5), ("fold", 2)}


def test_an_unknown_row_names_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=r"'clipping' is unknown; .*clip_grad_norm.*fold"):
        measurement.run((20_000,), (10,), names=("clipping",))


def test_peers_are_installed_or_named_as_missing() -> None:
    makers, missing = clip_peers()
    found = {name.split()[1] for name in makers}
    assert found | set(missing) == {"zclip", "autoclip", "timm"}
    for name, make in makers.items():
        parameter = torch.nn.Parameter(torch.full((10, 10), 0.01))
        step = make()
        for scale in (1.0, 1.0, 1.0, 100.0):
            parameter.grad = torch.full_like(parameter, scale)
            step([parameter], 1e9)
        assert float(parameter.grad.norm()) < 100.0, name


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("max_norm", "passes"), [(1e9, 1), (1e-3, 3)])
def test_no_second_pass_below_the_bound(max_norm: float, passes: int) -> None:
    """Reading is one pass; clipping reads again and writes."""
    parameter = torch.nn.Parameter(torch.zeros(1000, 1000))
    parameter.grad = torch.full_like(parameter, 0.1)
    with MemoryTraffic() as traffic:
        tg.clip_grad_norm_([parameter], max_norm)
    assert traffic.nbytes == pytest.approx(passes * 4_000_000, rel=0.01)
