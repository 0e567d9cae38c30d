"""Z7: whatever ranks do differently is one readable error on every rank under every mode, and no time-out."""

import re

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import small_model, wrap
from tightgrad import codecs, reducers

RANK_1_HAS = {
    "size": (tg.Compress(codecs.IntBlock(4)), tg.Compress(codecs.IntBlock(8))),
    "dtype": (tg.Compress(codecs.Cast("bfloat16")), tg.Compress(codecs.Cast("float16"))),
    "collective": (
        tg.Compress(codecs.IntBlock(4), reducers.Gather()),
        tg.Compress(codecs.IntBlock(4), reducers.TwoShot()),
    ),
    "feedback": (tg.Compress(codecs.IntBlock(4)), tg.Compress(codecs.IntBlock(4), feedback=tg.ErrorFeedback())),
    "overlap": (tg.Compress(codecs.IntBlock(4), overlap="backward"), tg.Compress(codecs.IntBlock(4))),
    "fallback": (
        tg.Compress(codecs.IntBlock(4)),
        tg.Compress(codecs.IntBlock(4), fallback="dense", max_relative_error=0.5),
    ),
}


def attach_plan(model, compress):
    tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(compress=compress))


def attach_differently():
    errors = {}
    differs = dist.get_rank() == 1
    for name, plans in RANK_1_HAS.items():
        for kind in ("ddp", "fsdp2", "hook"):
            if kind != "ddp" and name not in ("size", "collective"):
                continue
            model = wrap(small_model(), "fsdp2" if kind == "fsdp2" else "ddp")
            attach = tg.ddp_comm_hook if kind == "hook" else attach_plan
            with pytest.raises(tg.RankMismatchError) as error:
                attach(model, plans[differs])
            errors[name, kind] = str(error.value)
    model = DistributedDataParallel(small_model())
    with pytest.raises(tg.RankMismatchError) as error:
        tg.ddp_comm_hook(model, RANK_1_HAS["size"][0], seed=int(differs))
    errors["seed", "hook"] = str(error.value)
    return errors


def test_ranks_with_different_settings_hear_of_it_on_every_rank():
    ranks = run_ranks(3, attach_differently)
    assert len(ranks[0]) == 11
    for rank, errors in enumerate(ranks):
        for case, message in errors.items():
            part = "seed" if case[0] == "seed" else "plan"
            assert re.search(rf"{part} differ on rank 1 \(compared with rank 0\)\. Rank {rank} has", message), case


def refused_hooks():
    """Modules that take no hook, each with its words."""
    compress = tg.Compress(codecs.IntBlock(4), overlap="backward")
    taken = DistributedDataParallel(small_model())
    taken.register_comm_hook(None, lambda state, bucket: None)
    static = DistributedDataParallel(small_model(), static_graph=True)
    cases = {
        "takes no communication hook": taken,
        "static_graph=True": static,
        "DistributedDataParallel module, not Sequential": small_model(),
    }
    for words, model in cases.items():
        with pytest.raises(tg.UnsupportedError, match=words):
            tg.ddp_comm_hook(model, compress)
    low = DistributedDataParallel(small_model().bfloat16())
    plan = tg.Plan(tg.Accumulate(2), compress)
    with pytest.raises(tg.UnsupportedError, match=r"micro-batches in low precision.*overlap=\"none\""):
        tg.attach(low, torch.optim.SGD(low.parameters(), lr=0.1), plan)
    # The hook is registered once and serves whoever attached last; without anybody DDP averages.
    model = DistributedDataParallel(small_model())
    norms = []
    for plan in (tg.Plan(compress=compress), tg.Plan(compress=tg.Compress(overlap="backward")), tg.Plan()):
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan)
        for window in pipe.windows([torch.full((2, 20), 1.0 + dist.get_rank())]):
            for batch in window:
                pipe.backward(model(batch).square().mean())
            norms.append(
                torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item() if plan.is_empty else 0
            )
            record = pipe.step()
            norms[-1] = record.grad_norm or norms[-1]
    return norms


def test_modules_that_take_no_hook_are_refused_and_one_hook_serves_in_turn():
    first, second = run_ranks(2, refused_hooks)
    assert first == second
    compressed, dense, plain = first
    assert dense == pytest.approx(plain, rel=1e-5)
    assert compressed == pytest.approx(plain, rel=0.1)
    assert compressed != dense
