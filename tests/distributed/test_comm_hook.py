"""The one-liner on a DDP module with a loop of one's own."""

import contextlib
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import small_model

SMALL_BUCKETS = 0.001
FEEDBACK = tg.Compress(tg.codecs.IntBlock(4, block_size=16), feedback=tg.ErrorFeedback())
SPARSE = tg.Compress(tg.codecs.TopK(0.05), feedback=tg.ErrorFeedback())


def batches(rank, count=6):
    generator = torch.Generator().manual_seed(10 + rank)
    return [
        (torch.randn(4, 20, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(count)
    ]


class Loop:
    """A plain loop with K micro-batches and `no_sync`."""

    def __init__(self, compress=FEEDBACK, *, micro_batches=1, bucket_cap_mb=SMALL_BUCKETS, scaler=None, compiled=False):
        self.model = DistributedDataParallel(small_model(), bucket_cap_mb=bucket_cap_mb)
        self.hook = tg.ddp_comm_hook(self.model, compress, scaler=scaler)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.micro_batches = micro_batches
        self.scaler = scaler
        self.called = torch.compile(self.model, backend="eager") if compiled else self.model

    def run(self, batches, *, poison=None, holds_no_sync=True):
        for index, (inputs, labels) in enumerate(batches):
            last = (index + 1) % self.micro_batches == 0
            with contextlib.nullcontext() if last or not holds_no_sync else self.model.no_sync():
                factor = float("nan") if (dist.get_rank(), index) == poison else 1.0
                loss = F.cross_entropy(self.called(inputs) * factor, labels) / self.micro_batches
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            if not last:
                continue
            if self.scaler:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self.optimizer.step()
            self.optimizer.zero_grad()
        return self

    def tensors(self):
        state = self.hook.state_dict()
        residuals = state["slots"].get("residual", {})
        return [p.detach().clone() for p in self.model.parameters()], residuals, state["step"]


def with_attach(compress):
    model = DistributedDataParallel(small_model())
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), tg.Plan(compress=compress))
    for window in pipe.windows(batches(dist.get_rank())):
        for inputs, labels in window:
            pipe.backward(F.cross_entropy(model(inputs), labels))
        pipe.step()
    return [p.detach().clone() for p in model.parameters()], pipe.state_dict()["slots"]["residual"], 6


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)


def compiled_loop(compress):
    attached = with_attach(compress)
    assert_equal(attached, Loop(compress, compiled=True, bucket_cap_mb=25).run(batches(dist.get_rank())).tensors(), "")


@pytest.mark.parametrize("compress", [FEEDBACK, pytest.param(SPARSE, marks=pytest.mark.slow)])
def test_a_compiled_loop_is_bitwise_attach(compress):
    run_ranks(2, compiled_loop, compress)


def all_loops():
    mine = batches(dist.get_rank())
    results = {}
    for name, compress in (("quantised", FEEDBACK), ("sparse", SPARSE)):
        results[name] = [
            with_attach(compress),
            Loop(compress).run(mine).tensors(),
            Loop(compress, scaler=scaler()).run(mine).tensors(),
        ]
    poisoned = Loop(scaler=scaler()).run(mine[:3])
    before = poisoned.tensors()
    poisoned.run(mine[:1], poison=(1, 0))
    results["poisoned"] = [before, poisoned.tensors()]
    results["bytes"] = poisoned.hook.wire_bytes, poisoned.hook.residual_norm
    errors = []
    for holds_no_sync in (True, False):
        loop = Loop(micro_batches=3)
        try:
            loop.run(mine, holds_no_sync=holds_no_sync)
            errors.append("")
        except tg.UsageError as error:
            errors.append(str(error))
    results["no_sync"] = errors
    return results


def assert_equal(first, second, case):
    assert all(map(torch.equal, first[0], second[0])), case
    assert first[1].keys() == second[1].keys()
    for name, tensor in first[1].items():
        assert torch.equal(tensor, second[1][name]), (case, name)
    assert first[2] == second[2], case


def test_own_loop_is_bitwise_attach_with_and_without_a_scaler():
    for results in run_ranks(2, all_loops):
        for name in ("quantised", "sparse"):
            attached, *others = results[name]
            for index, other in enumerate(others):
                assert_equal(attached, other, (name, index))
        assert_equal(*results["poisoned"], "a NaN on one rank changes nothing")
        assert results["bytes"][0] > 0
        assert results["bytes"][1] > 0
        held, forgotten = results["no_sync"]
        assert held == ""
        assert re.search(r"a second time before the step.*no_sync\(\)", forgotten)


def save_run(folder):
    Loop().run(batches(dist.get_rank())).hook.save(folder)


def resumed(folder, target, bucket_cap_mb):
    loop = Loop(bucket_cap_mb=bucket_cap_mb)
    loop.hook.load(folder)
    held = loop.hook.state_dict()
    loop.run(batches(dist.get_rank(), 3))
    if target:
        other = Loop()
        other.hook.load_state_dict(held)
        other.hook.save(target)
    return held["slots"]["residual"], loop.tensors()


def test_resume_with_another_bucket_size_and_on_2_3_2_ranks(tmp_path):
    two, three = str(tmp_path / "two"), str(tmp_path / "three")
    run_ranks(2, save_run, two)
    small = run_ranks(2, resumed, two, None, SMALL_BUCKETS)
    large = run_ranks(2, resumed, two, None, 25)
    for (residual, trained), (other, also) in zip(small, large, strict=True):
        assert all(torch.equal(residual[name], other[name]) for name in residual)
        assert_equal(trained, also, "bucket size")
    on_three = run_ranks(3, resumed, two, three, SMALL_BUCKETS)
    on_two = run_ranks(2, resumed, three, None, 25)
    for name in small[0][0]:
        total = sum(rank[0][name] for rank in small)
        assert total.abs().max() > 0
        for ranks in (on_three, on_two):
            assert torch.equal(sum(rank[0][name] for rank in ranks if name in rank[0]), total), name
