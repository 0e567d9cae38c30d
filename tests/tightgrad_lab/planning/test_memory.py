"""What `tightgrad plan` says of memory, held to what a step needs."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad_lab.cli import app as cli
from tightgrad_lab.common.recommended import RECOMMENDED
from tightgrad_lab.planning.live_bytes import LiveBytes
from tightgrad_lab.planning.memory import available_nbytes, fitting, footprint, of_plan

WIDTH, SAMPLES = 128, 32


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))


def measured(samples: int = SAMPLES) -> tuple[nn.Module, object]:
    own = model()
    optimizer = torch.optim.AdamW(own.parameters(), 0.0)
    return own, footprint(own, optimizer, (lambda batch: own(batch).square().mean(), torch.randn(samples, WIDTH)))


def test_more_memory_fits_more_samples_and_the_estimate_of_the_most_fits() -> None:
    _, about = measured()
    needed = of_plan(about, tg.Plan()).total
    found = [fitting(about, tg.Plan(), factor * needed) for factor in (1, 2, 4)]
    assert found == sorted(found)
    assert found[0] >= SAMPLES
    assert fitting(about, tg.Plan(), 1000) == 0


@pytest.mark.parametrize("name", ["4-bit blocks", "topk 0.1 %"])
def test_a_plan_with_feedback_needs_a_residual_more(name: str) -> None:
    own, about = measured()
    total = 4 * sum(parameter.numel() for parameter in own.parameters())
    assert of_plan(about, RECOMMENDED[name]).residual == total
    assert of_plan(about, tg.Plan()).residual == 0


def test_the_estimate_is_near_what_a_step_holds() -> None:
    _, about = measured()
    own = model()
    optimizer = torch.optim.AdamW(own.parameters(), 0.0)
    batch = torch.randn(SAMPLES, WIDTH)

    def step() -> None:
        own(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    before = sum(parameter.numel() * 4 for parameter in own.parameters()) * 3  # parameters, and AdamW's state
    with LiveBytes() as live:
        step()
    assert of_plan(about, tg.Plan()).total == pytest.approx(before + live.peak, rel=0.2)


def test_a_batch_without_samples_leaves_the_question_open() -> None:
    own = model()
    optimizer = torch.optim.AdamW(own.parameters(), 0.0)
    about = footprint(own, optimizer, (lambda batch: own(torch.ones(1, WIDTH)).sum(), "no tensor in it"))
    assert about.activations is None
    assert fitting(about, tg.Plan(), 10**12) is None
    assert of_plan(about, tg.Plan()).activations == 0


def test_ranks_share_the_memory_of_a_machine() -> None:
    assert available_nbytes(4) == available_nbytes(1) // 4


def test_plan_says_which_micro_batch_fits(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("examples/audit/correct_raw_ddp.py")
    rows = {}
    for memory in ("0.01", "1"):
        assert cli.run(["plan", str(file), "--rate", "10mbit", "--memory-gb", memory, "--json"]) == 0
        rows[memory] = json.loads(capsys.readouterr().out)["rows"]
    for small, large in zip(rows["0.01"], rows["1"], strict=True):
        assert 0 < small["largest_micro_batch"] < large["largest_micro_batch"]
        assert small["memory_bytes"] == large["memory_bytes"]
