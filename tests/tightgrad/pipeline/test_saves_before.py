"""Checkpoints that the version before wrote, on another processor, are taken up."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tightgrad as tg
from support.saved import contents, load, make, windows
from support.training import batches, linear, on_ranks

FROZEN = Path(__file__).parent / "frozen/checkpoint_v1"  # written by 0.1 at commit 9ea0141, on two ranks
FROZEN_PLAN = tg.Plan(tg.Accumulate(2), tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback()))


def go_on(collective, folder, stop):
    """Compare a run straight through with one that takes its state at `stop` from files of another machine."""

    def made():
        model = linear()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, tg.attach(model, optimizer, FROZEN_PLAN, collective=collective)

    loader = batches(6, collective.rank)
    model, pipe = made()
    straight = windows(pipe, model, loader)
    for place in straight:
        if pipe.state.step == 2 and place == "step":
            middle = {name: value.clone() for name, value in model.state_dict().items()}
    model_2, pipe_2 = made()
    consumed = pipe_2.load(folder)
    assert consumed == 4
    assert (pipe_2.state.open_window is not None) == bool(stop % 2)
    stored = load_file(folder / "step-00000002" / f"rank-{collective.rank:05}-of-00002.safetensors")
    for name, value in pipe_2.state.slots["residual"].items():
        assert torch.equal(stored[f"slots/0/{name}"], value)
    model_2.load_state_dict(middle)
    assert list(windows(pipe_2, model_2, loader[consumed:]))[-1] == "step"
    ends = [(one.state_dict(), other.state.slots["residual"]) for one, other in ((model, pipe), (model_2, pipe_2))]
    # Not bitwise: matrix products on another processor differ in the last bit.
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)
    return True


@pytest.mark.parametrize(("name", "stop"), [("between_windows", 4), ("in_a_window", 5)])
def test_checkpoints_of_the_version_before_are_taken_up(name, stop):
    assert on_ranks(2, lambda collective: go_on(collective, FROZEN / name, stop)) == [True, True]


def test_a_checkpoint_of_the_version_before_is_taken_up_by_other_ranks():
    loaded = on_ranks(3, lambda collective: load(collective, FROZEN / "between_windows"))
    assert [step for _, step, _, _ in loaded] == [2, 2, 2]


def test_the_mixtures_that_the_version_before_could_leave_are_refused(tmp_path):
    """Its files carry no id, but whether a window is open is the same on every rank."""
    shutil.copytree(FROZEN / "between_windows", tmp_path, dirs_exist_ok=True)
    name = "step-00000002/rank-00001-of-00002.safetensors"
    shutil.copy(FROZEN / "in_a_window" / name, tmp_path / name)
    for error in on_ranks(2, lambda collective: load(collective, tmp_path)):
        assert isinstance(error, tg.CheckpointError)
        assert "no id, step 2, 0 skipped, in a window" in str(error)


def test_a_save_beside_one_of_the_version_before_leaves_it_alone(tmp_path):
    shutil.copytree(FROZEN / "between_windows", tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path / "step-00000002")

    def body(collective):
        _, pipe = make(collective)
        pipe.load(tmp_path)
        return pipe.save(tmp_path)

    assert on_ranks(2, body) == [tmp_path / "step-00000002-2"] * 2
    assert contents(tmp_path / "step-00000002") == before
