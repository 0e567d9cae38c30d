"""The way out that the error for several optimizers names: one that steps both is right, and can be saved."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import tightgrad as tg

PAGE = Path(__file__).parents[2] / "docs" / "premises.md"
PLAN = tg.Plan(accumulate=tg.Accumulate(micro_batches=4), clip=tg.clip.GlobalNorm(0.1, compat="torch"))


@pytest.fixture(scope="module")
def together():
    code = re.search(r"^class Together.*?(?=^model = )", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {"torch": torch}
    exec(code[0], names)
    return names["Together"]


def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    matrices = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2], lr=0.02)
    others = torch.optim.AdamW([p for p in model.parameters() if p.dim() != 2], lr=0.02)
    return model, matrices, others


def data():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 8, generator=generator) for _ in range(16)]


def train(pipe, model, batches):
    for window in pipe.windows(batches):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        pipe.step()


def test_it_takes_the_steps_of_a_loop_by_hand(together):
    model, muon, adamw = made()
    for number, batch in enumerate(data()):
        (model(batch).square().mean() / 4).backward()
        if number % 4 == 3:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            for optimizer in (muon, adamw):
                optimizer.step()
                optimizer.zero_grad()
    other, *both = made()
    optimizer = together(*both)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    train(tg.attach(other, optimizer, PLAN, scheduler=schedule), other, data())
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_schedule_reaches_both_also_after_a_resume(together):
    model, *both = made()
    optimizer = together(*both)
    train(tg.attach(model, optimizer, PLAN), model, data()[:8])
    saved, weights = copy.deepcopy((optimizer.state_dict(), model.state_dict()))
    train(tg.attach(model, optimizer, PLAN), model, data()[8:])

    resumed, *both = made()
    resumed.load_state_dict(weights)
    again = together(*both)
    again.load_state_dict(saved)
    train(tg.attach(resumed, again, PLAN), resumed, data()[8:])
    for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for group in again.param_groups:
        group["lr"] = 0.5
    assert all(group["lr"] == 0.5 for inner in again.optimizers for group in inner.param_groups)
