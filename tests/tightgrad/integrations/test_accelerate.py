"""`TightAccelerator`: the loop of Accelerate's users gives what the raw loop gives, on one process and on two."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import tightgrad as tg
from support.accelerate_state import reset
from support.programs import run_program
from support.ranks import run_ranks
from support.tagging import BATCH, PLANS, STEPS, Tagger, Tokens, check_equal, launched, num_tokens, raw_loop, weights_of
from tightgrad.integrations.accelerate import TightAccelerator
from tightgrad.integrations.accelerate_checks import check_scaler

MAX_NORM = 0.1

pytestmark = pytest.mark.filterwarnings("ignore:the loop over the training loader was left:tightgrad.TightGradWarning")


def make(plan, ranks=1, **kwargs):
    accelerator = TightAccelerator(plan=plan, weight=num_tokens, gradient_accumulation_steps=STEPS, cpu=True, **kwargs)
    model = Tagger()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(Tokens(ranks), batch_size=BATCH)
    return accelerator, *accelerator.prepare(model, optimizer, loader)


def epoch(accelerator, model, optimizer, loader, stop_after=None):
    """Without the `sync_gradients` guard that Accelerate's own clipping needs (A3)."""
    losses, norms, synced = [], [], []
    for number, batch in enumerate(loader, 1):
        with accelerator.accumulate(model):
            loss = model(**batch)["loss"]
            accelerator.backward(loss)
            norms.append(accelerator.clip_grad_norm_(model.parameters(), MAX_NORM))
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
        synced.append(accelerator.sync_gradients)
        if number == stop_after:
            break
    return losses, norms, synced


@pytest.mark.parametrize("name", PLANS)
def test_same_as_the_raw_loop(name):
    weights, losses, records = raw_loop(PLANS[name], epochs=2)
    accelerator, model, optimizer, loader = make(PLANS[name])
    found = [epoch(accelerator, model, optimizer, loader) for _ in range(2)]
    assert found[0][0] + found[1][0] == losses
    check_equal(weights_of(model), weights)
    assert found[0][2] == [False, False, False, True, False, False, True]
    norms = [float(norm) for one in found for norm in one[1]]
    stepped = [norm for norm in norms if norm == norm]
    assert stepped == [pytest.approx(record.grad_norm, rel=1e-6) for record in records]


def two_ranks(name):
    weights, losses, _ = raw_loop(PLANS[name])
    with launched():
        try:
            accelerator, model, optimizer, loader = make(PLANS[name], ranks=2)
            assert accelerator.num_processes == 2
            found, _, _ = epoch(accelerator, model, optimizer, loader)
            traffic = accelerator.pipe.adapter.collective.traffic.nbytes
        finally:
            reset()
    assert found == losses
    check_equal(weights_of(model), weights)
    return traffic


def test_same_as_the_raw_loop_on_two_ranks():
    dense, compressed = (run_ranks(2, two_ranks, name) for name in PLANS)
    assert 0 < compressed[0] < dense[0]


def test_a_checkpoint_holds_the_residuals(tmp_path):
    weights, _, _ = raw_loop(PLANS["compressed"], epochs=2)
    accelerator, model, optimizer, loader = make(PLANS["compressed"])
    epoch(accelerator, model, optimizer, loader)
    accelerator.save_state(tmp_path)
    reset()
    accelerator, model, optimizer, loader = make(PLANS["compressed"])
    accelerator.load_state(tmp_path)
    assert accelerator.pipe.state.slots["residual"]
    epoch(accelerator, model, optimizer, loader)
    check_equal(weights_of(model), weights)


def test_leaving_the_loop_in_mid_window_drops_it():
    accelerator, model, optimizer, loader = make(PLANS["clipped"])
    epoch(accelerator, model, optimizer, loader, stop_after=STEPS + 1)
    assert not accelerator.in_window
    assert accelerator.pipe.state.step == 1
    epoch(accelerator, model, optimizer, loader)
    assert accelerator.pipe.state.step == 3


def test_an_evaluation_loader_is_left_alone():
    accelerator, model, _optimizer, loader = make(PLANS["clipped"])
    model.eval()
    seen = [accelerator.gather_for_metrics(batch["labels"]) for batch in loader]
    assert torch.equal(torch.cat(seen), Tokens().labels)
    assert not accelerator.in_window


def test_other_clipping_than_the_plans_is_refused():
    accelerator, model, _, loader = make(PLANS["clipped"])
    for batch in loader:
        accelerator.backward(model(**batch)["loss"])
        with pytest.raises(tg.UsageError, match=r"the loop asks for GlobalNorm\(max_norm=1.0.*once, by the plan"):
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
        with pytest.raises(tg.UsageError, match="Value"):
            accelerator.clip_grad_value_(model.parameters(), 1.0)
        break


def test_another_number_of_steps_is_refused():
    with pytest.raises(tg.ConfigError, match="gradient_accumulation_steps is 4"):
        make(tg.Plan(accumulate=tg.Accumulate(micro_batches=2)))


def test_a_scaler_of_its_own_is_refused():
    with pytest.raises(tg.UnsupportedError, match="GradScaler"):
        check_scaler(object())


SYNC = Path(__file__).with_name("accelerate_test_sync.py")


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_accelerates_own_test_passes(ranks, tmp_path):
    """With compat="accelerate", since it takes a partial window divided by all steps for right."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = run_program(SYNC.read_text(encoding="utf-8"), tmp_path, environment, ranks=ranks if ranks > 1 else None)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = [int(number) for number in re.findall(r"\[(\d+) steps through the pipeline\]", done.stdout)]
    assert len(steps) == ranks
    assert all(number > 0 for number in steps)
