"""Reduction while backward goes on: bitwise the explicit mode, and an error on every rank where a hook would hang."""

import dataclasses
import gc
import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import ragged_batches, small_model
from tightgrad import codecs, feedback, reducers

TWO_SHOT = tg.Compress(codecs.IntBlock(4, block_size=16), feedback=tg.ErrorFeedback())
SMALL_BUCKETS = 0.001  # MB: each parameter of any size in its own

OPTIONS: tuple[dict[str, bool], ...] = ({"find_unused_parameters": True}, {"gradient_as_bucket_view": True})
COMPRESS = {
    "dense": tg.Compress(),
    "two shots": TWO_SHOT,
    "stochastic": tg.Compress(codecs.QSGD(levels=7), feedback=None),
    "sparse, dgc": tg.Compress(codecs.TopK(0.05), feedback=feedback.MomentumCorrection(0.9)),
    "linear": tg.Compress(codecs.RandomK(0.2), feedback=tg.ErrorFeedback("int8")),
    "ef21": tg.Compress(codecs.TopK(0.1), feedback=feedback.EF21()),
    "low rank": tg.Compress(None, reducers.PowerSGD(2), tg.ErrorFeedback()),
    "falls back at times": tg.Compress(
        codecs.TopK(0.3), feedback=tg.ErrorFeedback(), fallback="dense", max_relative_error=0.42
    ),
    "sparse two shots": tg.Compress(codecs.TopK(0.1), reducers.SparseTwoShot(), tg.ErrorFeedback()),
}


def with_overlap(compress, overlap):
    return dataclasses.replace(compress, overlap=overlap)


def is_dense(plan):
    return plan.compress is None or plan.compress == with_overlap(tg.Compress(), plan.compress.overlap)


def trained(plan, *, steps=None, poison=None, bucket_cap_mb=SMALL_BUCKETS, **arguments):
    """Train on this rank; return weights, buffers, state, and what the records say."""
    model = DistributedDataParallel(small_model(batch_norm=True), bucket_cap_mb=bucket_cap_mb, **arguments)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), plan)
    records = []
    for index, window in enumerate(pipe.windows(ragged_batches(dist.get_rank()))):
        for inputs, labels in window:
            factor = float("nan") if (dist.get_rank(), index) == poison else 1.0
            pipe.backward(F.cross_entropy(model(inputs) * factor, labels))
        record = pipe.step()
        numbers = (record.grad_norm, record.clip_coef, record.residual_norm, record.loss_scale, record.fell_back)
        assert index or poison == (dist.get_rank(), 0) or (record.compression_cosine is None) == is_dense(plan)
        records.append((record.skip_reason, record.relative_error, numbers))
        if steps is not None and index + 1 == steps:
            break
    return dict(model.module.state_dict()), pipe.state_dict()["slots"], records


def both_ways():
    results = {}
    for name, compress in COMPRESS.items():
        for scaled in (False, True) if name == "two shots" else (False,):
            for arguments in ({}, *(OPTIONS if name in ("two shots", "sparse, dgc") and not scaled else ())):
                runs = [
                    trained(
                        tg.Plan(
                            accumulate=tg.Accumulate(3),
                            compress=with_overlap(compress, overlap),
                            clip=tg.clip.GlobalNorm(0.3),
                            guard=tg.Guard("skip"),
                            loss_scale=tg.LossScale(1024.0, growth_interval=1) if scaled else None,
                        ),
                        poison=(1, 1),
                        **arguments,
                    )
                    for overlap in ("none", "backward")
                ]
                results[name, scaled, tuple(arguments)] = runs
    return results


def is_buffer(name):
    return "running" in name or "num_batches" in name


def assert_same(explicit, overlapped, case, *, is_first):
    assert explicit[0].keys() == overlapped[0].keys()
    for name, tensor in explicit[0].items():
        # A rank without batches repeats one, as under plain DDP; rank 0's buffers are everyone's in the next window.
        if is_first or not is_buffer(name):
            assert torch.equal(tensor, overlapped[0][name]), (case, name)
    assert explicit[1].keys() == overlapped[1].keys(), case
    for slot, tensors in explicit[1].items():
        assert tensors.keys() == overlapped[1][slot].keys(), (case, slot)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, overlapped[1][slot][name]), (case, slot, name)
    for (reason, error, numbers), (other_reason, other_error, others) in zip(explicit[2], overlapped[2], strict=True):
        assert (reason, numbers) == (other_reason, others), case
        assert other_error == (error if error is None else pytest.approx(error, rel=1e-12)), case


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_overlapped_is_bitwise_the_explicit_mode(world_size):
    """Ragged, unequal and partial windows, momentum, BatchNorm, one NaN on one rank, buckets that are rebuilt."""
    ranks = run_ranks(world_size, both_ways)
    for index, rank in enumerate(ranks):
        for case, (explicit, overlapped) in rank.items():
            assert [reason for reason, *_ in explicit[2]].count("nonfinite") == 1, (case, explicit[2])
            if case[0] == "falls back at times":
                assert {numbers[-1] for *_, numbers in explicit[2]} == {True, False}
            if case[0] == "dense" and world_size > 2:
                continue  # a ring adds up in an order that depends on the bucket
            assert_same(explicit, overlapped, case, is_first=index == 0)
    for case, (_, overlapped) in ranks[0].items():
        for other in ranks[1:]:
            for name, tensor in overlapped[0].items():
                if is_buffer(name):
                    continue
                assert torch.equal(tensor, other[case][1][0][name]), (case, name)


class Branches(nn.Module):
    """One branch is used when asked for; there may be one that never is."""

    def __init__(self, *, never):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.stem, self.branch = nn.Linear(20, 16), nn.Linear(16, 16)
            self.never = nn.Linear(16, 16) if never else None

    def forward(self, inputs, branch):
        hidden = self.stem(inputs)
        return (self.branch(hidden) if branch else hidden).square().mean()


def with_branches(uses, overlap, *, never=True, **arguments):
    """`uses[step][rank]` says whether the branch is used; returns gradients' names, weights and residuals by step."""
    model = DistributedDataParallel(Branches(never=never), bucket_cap_mb=SMALL_BUCKETS, **arguments)
    plan = tg.Plan(compress=with_overlap(TWO_SHOT, overlap))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    seen = []
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step, window in enumerate(pipe.windows([torch.randn(4, 20, generator=generator) for _ in uses])):
        for batch in window:
            pipe.backward(model(batch, uses[step][dist.get_rank()]))
        pipe.step()
        residuals = {name: tensor.clone() for name, tensor in pipe.state.slots["residual"].items()}
        seen.append((residuals, [p.detach().clone() for p in model.parameters()]))
    return seen


USES = ((True, True), (True, False), (False, False), (False, True))


def unused_both_ways():
    explicit = with_branches(USES, "none")
    overlapped = with_branches(USES, "backward", find_unused_parameters=True)
    return explicit, overlapped


def test_parameters_that_some_or_all_ranks_leave_unused():
    for explicit, overlapped in run_ranks(2, unused_both_ways):
        for step, ((residuals, weights), (other, other_weights)) in enumerate(zip(explicit, overlapped, strict=True)):
            assert residuals.keys() == other.keys()
            assert "never.weight" not in other
            assert all(torch.equal(residuals[name], other[name]) for name in residuals), step
            assert all(map(torch.equal, weights, other_weights)), step
        assert torch.equal(overlapped[1][0]["branch.weight"], overlapped[2][0]["branch.weight"]), "nobody used it"
        assert not torch.equal(overlapped[2][0]["branch.weight"], overlapped[3][0]["branch.weight"])


def raised(body):
    try:
        body()
    except tg.TightGradError as error:
        return type(error).__name__, str(error)
    return "", ""


def twice_in_a_window():
    """The user's own synchronised backward inside a window, on top of the pipeline's."""
    model = DistributedDataParallel(small_model())
    plan = tg.Plan(accumulate=tg.Accumulate(2), compress=with_overlap(TWO_SHOT, "backward"))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    for window in pipe.windows(ragged_batches(0)[:2]):
        for inputs, labels in window:
            pipe.backward(F.cross_entropy(model(inputs), labels))
        if dist.get_rank() == 1:
            F.cross_entropy(model(inputs), labels).backward()
        if dist.get_rank() == 0:
            F.cross_entropy(model(inputs), labels).backward()
        pipe.step()


def outside_a_window():
    model = DistributedDataParallel(small_model())
    plan = tg.Plan(compress=with_overlap(TWO_SHOT, "backward"))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    model(torch.ones(2, 20)).sum().backward()
    del pipe


def attached_and_let_go():
    model = DistributedDataParallel(small_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tg.attach(model, optimizer, tg.Plan(compress=with_overlap(TWO_SHOT, "backward")))
    gc.collect()
    return model, optimizer


def without_its_pipe():
    model, _ = attached_and_let_go()
    model(torch.ones(2, 20)).sum().backward()


def errors_of_all():
    def unused():
        with_branches(((True, True), (True, True)), "backward")

    def unused_on_one_rank():
        with_branches(((True, True), (True, True), (True, False)), "backward", never=False)

    cases = {
        "twice": twice_in_a_window,
        "outside": outside_a_window,
        "gone": without_its_pipe,
        "unused": unused,
        "unused on one rank": unused_on_one_rank,
    }
    return {name: raised(body) for name, body in cases.items()}


def test_what_would_hang_is_an_error_on_every_rank():
    ranks = run_ranks(2, errors_of_all)
    words = {
        "twice": ("UsageError", "changed from outside in the middle.*a backward other than pipe.backward"),
        "outside": ("UsageError", "outside of a window"),
        "gone": ("UsageError", r"pipeline .* is gone; keep what attach\(\) gave"),
        "unused": ("UsageError", r"did not come on every rank.*never\.weight.*find_unused_parameters=True"),
        "unused on one rank": (
            "RankMismatchError",
            "rank 0 has more.*rank 1 is at the end.*find_unused_parameters=True",
        ),
    }
    for rank in ranks:
        for name, (kind, pattern) in words.items():
            assert rank[name][0] == kind, (name, rank[name])
            assert re.search(pattern, rank[name][1]), rank[name]


def averaged_again():
    model, optimizer = attached_and_let_go()
    pipe = tg.attach(model, optimizer, tg.Plan())
    model(torch.full((2, 20), 1.0 + dist.get_rank())).sum().backward()
    del pipe
    alone = small_model()
    for rank in range(2):
        (alone(torch.full((2, 20), 1.0 + rank)).sum() / 2).backward()
    return [(p.grad, q.grad) for p, q in zip(model.parameters(), alone.parameters(), strict=True)]


def test_an_empty_plan_lets_it_average_again():
    for grads in run_ranks(2, averaged_again):
        for own, mean in grads:
            torch.testing.assert_close(own, mean)
