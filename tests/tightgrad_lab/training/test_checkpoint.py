"""A run's checkpoint: one folder for each save, whose files are taken up only together."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save as to_bytes

import tightgrad as tg
from support.training import batches, linear, train
from tightgrad.checkpoint import folder as pipeline_checkpoint
from tightgrad.checkpoint.rank_file import serialized
from tightgrad_lab.errors import RunError
from tightgrad_lab.training import checkpoint
from tightgrad_lab.training.ranks import Rank

RANK = Rank(0, 1, torch.device("cpu"), "gloo")
TRAINING = "training-00000-of-00001.safetensors"
OWN = "rank-00000-of-00001.safetensors"


class Run:
    def __init__(self):
        self.model = linear()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        plan = tg.Plan(tg.Accumulate(1), tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback()))
        self.pipe = tg.attach(self.model, optimizer, plan, scheduler=self.scheduler)

    def train(self):
        train(self.pipe, self.model, batches(2))

    def save(self, folder, measured):
        checkpoint.save_checkpoint(folder, RANK, self.pipe, self.model, self.scheduler, {"measured": measured})
        return folder / (folder / "latest").read_text().split()[0]

    def load(self, folder):
        return checkpoint.load_checkpoint(folder, RANK, self.pipe, self.model, self.scheduler)["measured"]


def test_a_save_replaces_the_one_before_also_at_the_same_step(tmp_path):
    run = Run()
    run.train()
    first = run.save(tmp_path, 1)
    second = run.save(tmp_path, 2)
    assert first != second
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [second.name]
    assert sorted(path.name for path in second.iterdir()) == [OWN, TRAINING]
    again = Run()
    assert again.load(tmp_path) == 2
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), run.model.parameters(), strict=True))
    assert torch.equal(again.pipe.state.slots["residual"]["weight"], run.pipe.state.slots["residual"]["weight"])


def test_a_folder_that_another_save_is_writing_is_left_alone(tmp_path):
    run = Run()
    run.train()
    run.save(tmp_path, 1)
    (tmp_path / "step-00000002-2").mkdir()
    assert run.save(tmp_path, 2).name == "step-00000002-3"
    assert (tmp_path / "step-00000002-2").is_dir()


@pytest.mark.parametrize("name", [TRAINING, OWN])
def test_files_of_two_saves_are_not_loaded_together(tmp_path, name):
    run = Run()
    run.train()
    shutil.copy(run.save(tmp_path, 1) / name, tmp_path / "kept")
    shutil.copy(tmp_path / "kept", run.save(tmp_path, 2) / name)
    with pytest.raises(RunError, match="of different saves"):
        Run().load(tmp_path)


def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    run = Run()
    run.train()
    first = run.save(tmp_path, 1)
    real = pipeline_checkpoint.write_file

    def full(path, content):
        if path.name == TRAINING:
            raise OSError("No space left on device")
        real(path, content)

    monkeypatch.setattr(pipeline_checkpoint, "write_file", full)
    with pytest.raises(tg.CheckpointError, match="No space left"):
        run.save(tmp_path, 2)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [first]
    assert Run().load(tmp_path) == 1


def test_a_checkpoint_of_the_version_before_is_taken_up(tmp_path):
    """Its files carry no id."""
    run = Run()
    run.train()
    folder = run.save(tmp_path, 1)
    about, tensors = checkpoint._read(folder / TRAINING)
    del about["save"]
    (folder / TRAINING).write_bytes(to_bytes(tensors, {"tightgrad_lab": json.dumps(about)}))
    (folder / OWN).write_bytes(serialized(run.pipe.state_dict(), 0, 1))
    assert Run().load(tmp_path) == 1
