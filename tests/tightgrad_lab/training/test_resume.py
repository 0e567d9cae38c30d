"""A run that is stopped in mid-epoch and goes on from its checkpoint ends bit for bit where it would have."""

import contextlib
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from support.ranks import run_ranks
from tightgrad_lab.cases import load_case
from tightgrad_lab.cases.text.data import glosses
from tightgrad_lab.experiments.factorial import make_plan
from tightgrad_lab.training.loop import Keep, Trainer
from tightgrad_lab.training.ranks import Rank

EVERY, STOPPED_AT = 3, 5


class StoppedError(Exception):
    pass


def _few():
    train, test = glosses()
    return train[::30], test[::30]


def _trainer():
    case = replace(load_case("text", "bert"), read=_few)  # its dropout draws from the generator that a checkpoint keeps
    settings = replace(case.settings(full=False), epochs=1, batch_size=52, micro_batches=2)
    rank = Rank(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), "gloo")
    return Trainer(case, settings, make_plan("clip+accumulate+compress", settings), 0, rank)


def _stop(progress):
    if progress.step == STOPPED_AT:
        raise StoppedError


def _straight_and_resumed(folder):
    result, model = _trainer().run(lambda progress: None)
    with contextlib.suppress(StoppedError):
        _trainer().run(_stop, Keep(Path(folder), every=EVERY))
    steps = []
    again, resumed = _trainer().run(lambda progress: steps.append(progress.step), Keep(Path(folder), True, EVERY))
    own = [(r["loss"], r["grad_norm"], r["residual_norm"]) for r in result.steps]
    theirs = [(r["loss"], r["grad_norm"], r["residual_norm"]) for r in again.steps]
    return model.state_dict(), resumed.state_dict(), own, theirs, (result.scores, again.scores), steps


def test_resumed_is_bit_identical(tmp_path):
    found = run_ranks(2, _straight_and_resumed, str(tmp_path))
    for straight, resumed, _, _, scores, steps in found:
        assert all(torch.equal(straight[name], resumed[name]) for name in straight)
        assert scores[0] == scores[1]
        assert steps == [4, 5, 6, 7, 8], "it goes on from the checkpoint, not from the beginning"
    assert found[0][2] == found[0][3]
    assert (tmp_path / "latest").is_file()
