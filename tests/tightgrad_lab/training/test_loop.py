"""The baseline of the case studies is plain DDP, bit for bit."""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from support.ranks import run_ranks
from tightgrad_lab.cases import load_case
from tightgrad_lab.experiments.factorial import make_plan
from tightgrad_lab.training.loop import Trainer
from tightgrad_lab.training.ranks import Rank

STEPS = 4


def _weights():
    case = load_case("image")
    settings = replace(case.settings(full=False), batch_size=32, micro_batches=2)
    rank = Rank(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), "gloo")
    trainer = Trainer(case, settings, make_plan("none", settings), 3, rank)
    training = trainer.start()
    steps = training.steps(trainer.batches(0))
    for _ in range(STEPS):
        next(steps)
    return trainer, training.model.state_dict()


def _both():
    trainer, ours = _weights()
    torch.manual_seed(3)
    model = trainer.case.model()
    ddp = DistributedDataParallel(model)
    optimizer = trainer.case.optimizer(model, trainer.settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, trainer.rate)
    for _, batch in zip(range(STEPS), trainer.batches(0), strict=False):
        optimizer.zero_grad()
        trainer.case.loss(ddp, batch).backward()
        optimizer.step()
        schedule.step()
    return ours, model.state_dict()


def test_none_is_plain_ddp_bitwise():
    for ours, plain in run_ranks(2, _both):
        assert all(torch.equal(ours[name], plain[name]) for name in plain)
