"""A run whose processes are killed in mid-window and started anew ends bit-identical to one that was not.

Model, optimizer, scaler and pipeline come from one checkpoint of torch.distributed.checkpoint, the pipeline also from
its own files.
"""

import os
import signal

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch.amp import GradScaler
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import tightgrad as tg
from support.ranks import RankError, run_ranks
from support.wrapping import local, ragged_batches, small_model, wrap

SAVE_AFTER = 5  # micro-batches: in the middle of the second window of three
KILL_AFTER = 6  # before its last one
CASES = {
    "plain": ("plain", "auto", True),
    "ddp": ("ddp", "auto", True),
    "ddp, uncompressed": ("ddp", "last", False),
    "fsdp2 last": ("fsdp2", "last", False),
    "fsdp2 every": ("fsdp2", "every", False),
}


class Training:
    def __init__(self, kind, sync, compressed):
        compress = tg.Compress(tg.codecs.TopK(0.05), feedback=tg.ErrorFeedback()) if compressed else None
        plan = tg.Plan(accumulate=tg.Accumulate(3, sync=sync), compress=compress, clip=tg.clip.ZClip())
        self.model = wrap(small_model(), kind)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scaler = GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        collective = tg.collectives.TorchCollective() if kind == "plain" else None
        self.pipe = tg.attach(self.model, self.optimizer, plan, collective=collective, scaler=self.scaler)

    def run(self, batches, after=None):
        done = 0
        for window in self.pipe.windows(batches):
            for inputs, labels in window:
                self.pipe.backward(F.cross_entropy(self.model(inputs), labels))
                done += 1
                if after is not None:
                    after(done)
            self.pipe.step()

    def state(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def save(self, folder):
        held = {**self.state(), "scaler": self.scaler.state_dict(), **tg.dcp.state_dict(self.pipe)}
        dcp.save(held, checkpoint_id=folder)

    def load(self, folder):
        held = {**self.state(), "scaler": self.scaler.state_dict()}
        dcp.load(held, checkpoint_id=folder)
        set_state_dict(self.model, self.optimizer, model_state_dict=held["model"], optim_state_dict=held["optimizer"])
        self.scaler.load_state_dict(held["scaler"])
        return tg.dcp.load(self.pipe, folder)

    def tensors(self):
        model = {name: local(tensor) for name, tensor in self.model.state_dict().items()}
        slots = self.pipe.state_dict()["slots"]
        return model | {f"{slot}/{name}": t for slot, values in slots.items() for name, t in values.items()}


def go_straight():
    found = {}
    for name, case in CASES.items():
        training = Training(*case)
        training.run(ragged_batches(dist.get_rank()))
        found[name] = training.tensors()
    return found


def get_killed(folder):
    """All cases save in mid-window and go on a little; in the last, every process kills itself."""
    cases = list(CASES)

    class StoppedError(Exception):
        pass

    for name in cases:
        training = Training(*CASES[name])

        def after(done, training=training, name=name):
            if done == SAVE_AFTER:
                training.save(f"{folder}/{name}")
                training.pipe.save(f"{folder}/{name}-files")
            if done == KILL_AFTER:
                if name == cases[-1]:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise StoppedError

        try:
            training.run(ragged_batches(dist.get_rank()), after)
        except StoppedError:
            training.pipe.abandon()


def take_up(folder):
    found = {}
    batches = ragged_batches(dist.get_rank())
    for name, case in CASES.items():
        for source in ("dcp", "files"):
            training = Training(*case)
            training.run(batches[:3])  # whatever it did before is gone
            consumed = training.load(f"{folder}/{name}")
            if source == "files":
                assert training.pipe.load(f"{folder}/{name}-files") == consumed
            assert consumed == 3
            training.run(batches[consumed:])
            found[name, source] = training.tensors()
    return found


def test_killed_in_mid_window_and_taken_up_is_bit_identical(tmp_path):
    straight = run_ranks(2, go_straight)
    with pytest.raises(RankError, match="died with exit code -9"):
        run_ranks(2, get_killed, str(tmp_path))
    for expected, found in zip(straight, run_ranks(2, take_up, str(tmp_path)), strict=True):
        for (name, source), tensors in found.items():
            assert tensors.keys() == expected[name].keys()
            assert any(key.startswith("residual/") for key in tensors) == CASES[name][2]
            for key, tensor in expected[name].items():
                assert torch.equal(tensors[key], tensor), (name, source, key)


def load_elsewhere(folder):
    """Residuals in a DCP checkpoint of two ranks, on this number of ranks."""
    training = Training("ddp", "auto", True)
    tg.dcp.load(training.pipe, folder)
    return training.pipe.state_dict()["slots"].get("residual", {})


def save_residuals(folder):
    training = Training("ddp", "auto", True)
    training.run(ragged_batches(0)[:3])
    training.save(folder)
    return training.pipe.state_dict()["slots"]["residual"]


def refuse(folder):
    """A checkpoint that is missing, one without a pipeline, and one that is damaged on one rank's part."""
    training = Training("ddp", "auto", True)
    dcp.save({"x": torch.zeros(2)}, checkpoint_id=f"{folder}/empty")
    messages = []
    for name in ("nowhere", "empty", "good"):
        if name == "good" and dist.get_rank() == 0:
            for part in os.scandir(f"{folder}/good"):
                if part.name.startswith("__1"):
                    with open(part.path, "r+b") as file:
                        file.truncate(os.path.getsize(part.path) // 2)
        dist.barrier()
        with pytest.raises(tg.CheckpointError) as error:
            tg.dcp.load(training.pipe, f"{folder}/{name}")
        messages.append(str(error.value))
    return messages


def test_dcp_on_another_number_of_ranks_and_what_it_refuses(tmp_path):
    folder = f"{tmp_path}/good"
    saved = run_ranks(2, save_residuals, folder)
    loaded = run_ranks(3, load_elsewhere, folder)
    for name in saved[0]:
        total = sum(rank[name] for rank in saved)
        assert total.abs().max() > 0
        assert torch.equal(sum(rank[name] for rank in loaded if name in rank), total)
    first, second = run_ranks(2, refuse, str(tmp_path))
    assert "nowhere" in first[0]
    assert "no complete checkpoint" in first[1]
    assert "rank 1 cannot load" in first[2]
    assert "good cannot be read" in second[2]
