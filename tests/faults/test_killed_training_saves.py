"""A process is killed while it saves a whole training loop: what is loaded is the newest complete save, and whole."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

import tightgrad as tg
from support.programs import run_program
from support.waiting import patience

OPERATIONS = {"os.mkdir", "os.listdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
EVERY, MOST = 2, 200  # of a save's operations, which are fewer than these


def made():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    plan = tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback()))
    return model, optimizer, tg.attach(model, optimizer, plan)


def fill(marker, model, optimizer, pipe):
    """Everything that a save holds is its number."""
    for parameter in model.parameters():
        parameter.data.fill_(marker)
        optimizer.state[parameter] = {name: torch.tensor(float(marker)) for name in ("step", "exp_avg", "exp_avg_sq")}
    pipe.state.slots = {"residual": {name: torch.full_like(p.detach(), marker) for name, p in model.named_parameters()}}
    pipe.state.step = marker


def held(folder):
    """The numbers in the checkpoint that is loaded."""
    model, optimizer, pipe = made()
    progress = {}
    tg.load(folder, model, optimizer, pipe, extra={"progress": progress})
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*model.parameters(), *states, *pipe.state.slots["residual"].values()]
    return {value for tensor in tensors for value in tensor.flatten().tolist()} | {pipe.state.step, progress["marker"]}


def kill_at(operation):
    """Before the file operation of this number."""
    left = [operation]

    def heard(event, arguments):
        if event in OPERATIONS or (event == "open" and "w" in str(arguments[1])):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(heard)


def save_later(*args, **settings):
    return tg.save_async(*args, **settings).result()


def save_and_die(folder, save=tg.save):
    """In a child for each number: a save that is killed there, until one is not."""
    model, optimizer, pipe = made()
    for marker in (1, 2):
        fill(marker, model, optimizer, pipe)
        tg.save(folder, model, optimizer, pipe, extra={"progress": {"marker": marker}}, keep=2)
    fill(3, model, optimizer, pipe)
    for operation in range(0, MOST, EVERY):
        copy = Path(f"{folder}-{operation}")
        shutil.copytree(folder, copy)
        child = os.fork()
        if child == 0:
            kill_at(operation)
            save(copy, model, optimizer, pipe, extra={"progress": {"marker": 3}}, keep=2)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return


@pytest.mark.timeout(patience(60))
@pytest.mark.parametrize("save", ["tg.save", "save_later"])
def test_a_process_killed_at_the_file_operations_of_a_save(tmp_path, save):
    code = f"from faults.test_killed_training_saves import *\nsave_and_die({str(tmp_path / 'saves')!r}, {save})"
    done = run_program(code, tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"}, seconds=60)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = sorted(tmp_path.glob("saves-*"), key=lambda path: int(path.name.split("-")[1]))
    found = [held(folder) for folder in folders]
    assert len(folders) > 10, "hardly an operation was met"
    assert {len(numbers) for numbers in found} == {1}, f"a mixture of two saves was loaded: {found}"
    loaded = [numbers.pop() for numbers in found]
    assert loaded == sorted(loaded)
    assert set(loaded) == {2.0, 3.0}
    for folder in folders[::3]:  # the next save removes what was cut off
        model, optimizer, pipe = made()
        fill(4, model, optimizer, pipe)
        tg.save(folder, model, optimizer, pipe, extra={"progress": {"marker": 4}}, keep=2)
        assert len([path for path in folder.iterdir() if path.is_dir()]) == 2
        assert held(folder) == {4.0}
