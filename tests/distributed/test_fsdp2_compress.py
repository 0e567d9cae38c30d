"""Compression in FSDP2's reduce-scatter: the same numbers and residuals as under DDP, and refusals with the reason."""

import re

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import Branches, full, ragged_batches, small_model, wrap
from tightgrad import codecs, feedback, reducers

CAST = tg.Compress(codecs.Cast("bfloat16"), reducers.Gather(), tg.ErrorFeedback())
# Shards of the model below are whole blocks of 16, so that encoding a shard is encoding a part of the whole.
BLOCKS = tg.Compress(codecs.IntBlock(4, block_size=16), reducers.Gather(), tg.ErrorFeedback())


def aligned_model():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Linear(20, 192), nn.ReLU(), nn.Identity(), nn.Linear(192, 96), nn.ReLU(), nn.Linear(96, 96)
        )


class Trained:
    def __init__(self, model, kind, compress, **plan):
        self.model = wrap(model, kind)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.pipe = tg.attach(
            self.model, self.optimizer, tg.Plan(accumulate=tg.Accumulate(3), compress=compress, **plan)
        )

    def run(self, batches, poison=None):
        self.records = []
        for index, window in enumerate(self.pipe.windows(batches)):
            for inputs, labels in window:
                factor = float("nan") if (dist.get_rank(), index) == poison else 1.0
                self.pipe.backward(F.cross_entropy(self.model(inputs) * factor, labels))
            self.records.append(self.pipe.step())
        return self

    def result(self):
        residuals = self.pipe.state_dict()["slots"].get("residual", {})
        weights = [full(p) for p in self.model.parameters()]
        return weights, residuals, [(r.skip_reason, r.grad_norm) for r in self.records]


def under_both():
    mine = ragged_batches(dist.get_rank())
    plan = {"clip": tg.clip.GlobalNorm(0.3), "guard": tg.Guard("skip")}
    results = {}
    for name, make_model, compress in (("cast", small_model, CAST), ("blocks", aligned_model, BLOCKS)):
        for scaled in (False, True):
            scale = {"loss_scale": tg.LossScale(1024.0, growth_interval=1)} if scaled else {}
            results[name, scaled] = [
                Trained(make_model(), kind, compress, **plan, **scale).run(mine, poison=(1, 1)).result()
                for kind in ("ddp", "fsdp2")
            ]
    return results


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_fsdp2_is_ddp_where_the_order_of_reduction_is_the_same(world_size):
    """Ragged windows, clipping, loss scaling, one NaN on one rank. Norms of shards add up in another order: 1e-6."""
    for rank in run_ranks(world_size, under_both):
        for case, (ddp, fsdp2) in rank.items():
            assert [reason for reason, _ in ddp[2]].count("nonfinite") == 1
            for (reason, norm), (other_reason, other_norm) in zip(ddp[2], fsdp2[2], strict=True):
                assert reason == other_reason, case
                assert norm is None or other_norm == pytest.approx(norm, rel=1e-6), case
            assert ddp[1].keys() == fsdp2[1].keys()
            for name, residual in ddp[1].items():
                assert residual.shape == fsdp2[1][name].shape
                assert torch.allclose(residual, fsdp2[1][name], rtol=1e-5, atol=1e-6 * float(residual.abs().max())), (
                    case
                )
            for weight, other in zip(ddp[0], fsdp2[0], strict=True):
                assert torch.allclose(weight, other, rtol=1e-6, atol=1e-7), case


def unclipped():
    mine = ragged_batches(dist.get_rank())
    return [Trained(aligned_model(), kind, BLOCKS).run(mine).result() for kind in ("ddp", "fsdp2")]


def test_unclipped_it_is_bitwise_the_same():
    for ddp, fsdp2 in run_ranks(2, unclipped):
        assert all(map(torch.equal, ddp[0], fsdp2[0]))
        assert all(torch.equal(residual, fsdp2[1][name]) for name, residual in ddp[1].items())


CONSERVED = {
    "two shots": tg.Compress(codecs.IntBlock(2, block_size=8), feedback=tg.ErrorFeedback()),
    "8-bit residual": tg.Compress(codecs.IntBlock(4, block_size=8), feedback=tg.ErrorFeedback("int8")),
    "sparse": tg.Compress(codecs.TopK(0.05), reducers.SparseTwoShot(), tg.ErrorFeedback()),
    "dgc": tg.Compress(codecs.TopK(0.05), reducers.SparseTwoShot(), feedback.MomentumCorrection(0.9)),
    "stochastic": tg.Compress(codecs.QSGD(7, block_size=16)),
    "falls back": tg.Compress(
        codecs.IntBlock(2, block_size=8), feedback=tg.ErrorFeedback(), fallback="dense", max_relative_error=1e-9
    ),
}


class Sum(torch.optim.Optimizer):
    """Adds up what it is given and changes nothing."""

    def __init__(self, named):
        self.names, parameters = zip(*named, strict=True)
        self.total = {}
        super().__init__(parameters, {})

    def step(self):
        for name, parameter in zip(self.names, self.param_groups[0]["params"], strict=True):
            if parameter.grad is not None:
                self.total[name] = self.total.get(name, 0) + full(parameter.grad).double()


def put_in_and_sent():
    """Sums over steps of exact gradients, of delivered ones, and this rank's residuals."""
    results = {}
    exact = {}
    mine = ragged_batches(dist.get_rank(), (4,) * (6 + dist.get_rank()))  # as many on each rank
    for name, compress in {"exact": tg.Compress(), **CONSERVED}.items():
        model = wrap(small_model(), "fsdp2" if name != "exact" else "ddp")
        optimizer = Sum((key.removeprefix("module."), p) for key, p in model.named_parameters())
        pipe = tg.attach(model, optimizer, tg.Plan(compress=compress))
        sent = []
        for window in pipe.windows(mine):
            for inputs, labels in window:
                pipe.backward(F.cross_entropy(model(inputs), labels))
            sent.append(pipe.step().wire_bytes)
        if name == "exact":
            exact = optimizer.total
            continue
        slots = pipe.plan.slots
        held = pipe.state.slots.get("residual", {})
        residuals = {key: slots["residual"].values(tensor).double() for key, tensor in held.items()}
        before = {key: total.clone() for key, total in optimizer.total.items()}
        record = pipe.flush() if residuals else None
        assert record is None or not record.skipped
        results[name] = (exact, before, residuals, sent, optimizer.total)
    return results


def test_what_is_put_in_is_sent_or_left():
    ranks = run_ranks(3, put_in_and_sent)
    for case in ("two shots", "8-bit residual", "sparse", "falls back"):
        exact, delivered, _, sent, flushed = ranks[0][case]
        assert all(nbytes > 0 for nbytes in sent)
        for rank in ranks:
            assert any(bool(left.any()) for left in rank[case][2].values()) == (case != "falls back")
        for name, total in exact.items():
            left = sum(rank[case][2][name] for rank in ranks).view(total.shape)
            # Float32 sums of six steps; with 8 bits also the rounding of six residuals, which has no bias.
            bound = 2e-6 if case != "8-bit residual" else 0.05
            bound *= max(1.0, float(total.abs().max()))
            assert (delivered[name] + left - total).abs().max() < bound, (case, name)
            assert (flushed[name] - total).abs().max() < bound, (case, name)
    for case in CONSERVED:
        for other in ranks[1:]:
            assert all(torch.equal(other[case][1][name], total) for name, total in ranks[0][case][1].items()), case


def save_under(kind, folder):
    Trained(aligned_model(), kind, BLOCKS).run(ragged_batches(dist.get_rank())[:3]).pipe.save(folder)


def load_under(kind, folder, target):
    trained = Trained(aligned_model(), kind, BLOCKS)
    trained.pipe.load(folder)
    held = {name: t.clone() for name, t in trained.pipe.state.slots.get("residual", {}).items()}
    if target:
        trained.pipe.save(target)
    trained.run(ragged_batches(dist.get_rank())[3:])
    return held, trained.result()[1]


def test_residuals_move_between_wrappers_and_2_3_2_ranks(tmp_path):
    two, three = str(tmp_path / "two"), str(tmp_path / "three")
    run_ranks(2, save_under, "fsdp2", two)
    ddp, fsdp2 = run_ranks(2, load_under, "ddp", two, None), run_ranks(2, load_under, "fsdp2", two, None)
    for first, second in zip(ddp, fsdp2, strict=True):
        assert all(torch.equal(tensor, second[1][name]) for name, tensor in first[1].items())
    on_three = run_ranks(3, load_under, "fsdp2", two, three)
    on_two = run_ranks(2, load_under, "fsdp2", three, None)
    for name in ddp[0][0]:
        total = sum(rank[0][name] for rank in ddp)
        assert total.abs().max() > 0
        for ranks in (on_three, on_two):
            assert torch.equal(sum(rank[0][name] for rank in ranks if name in rank[0]), total)


def flush_alone(folder):
    """What two ranks have left, what one process then takes as a step, and what a second flush says."""
    model = wrap(aligned_model(), "fsdp2")
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=1.0), tg.Plan(compress=BLOCKS))
    nothing = pipe.flush()
    pipe.load(folder)
    left = {name: tensor.clone() for name, tensor in pipe.state.slots["residual"].items()}
    before = {name: full(parameter).clone() for name, parameter in model.named_parameters()}
    flushed, again = pipe.flush(), pipe.flush()
    taken = {name: before[name] - full(parameter) for name, parameter in model.named_parameters()}
    return left, taken, [record.skip_reason for record in (nothing, flushed, again)]


def test_one_process_flushes_what_several_ranks_have_left(tmp_path):
    """Alone, FSDP2 averages by itself and compression sends nothing; a checkpoint may bring residuals all the same."""
    run_ranks(2, save_under, "fsdp2", str(tmp_path))
    ((left, taken, reasons),) = run_ranks(1, flush_alone, str(tmp_path))
    assert reasons == ["no_residual", None, "no_residual"]
    assert left.keys() == taken.keys()
    for name, residual in left.items():
        assert residual.abs().max() > 0
        assert (taken[name] - residual).abs().max() < 1e-6


USES = ((True, True), (True, True), (True, False), (False, False), (False, True))


def unused_under_both():
    results = []
    for kind in ("ddp", "fsdp2"):
        model = Branches()
        model = (
            DistributedDataParallel(model)
            if kind == "ddp"
            else fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        )
        compress = tg.Compress(codecs.IntBlock(4, block_size=8), reducers.Gather(), tg.ErrorFeedback())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        pipe = tg.attach(model, optimizer, tg.Plan(compress=compress))
        generator = torch.Generator().manual_seed(dist.get_rank())
        seen = []
        for step, window in enumerate(pipe.windows([torch.randn(4, 20, generator=generator) for _ in USES])):
            for batch in window:
                pipe.backward(model(batch, USES[step][dist.get_rank()]))
            pipe.step()
            seen.append(
                ({n: t.clone() for n, t in pipe.state.slots["residual"].items()}, [full(p) for p in model.parameters()])
            )
        results.append(seen)
    return results


def test_a_parameter_that_no_rank_used_keeps_its_residual_and_its_weight():
    for ddp, fsdp2 in run_ranks(2, unused_under_both):
        for step, ((residuals, weights), (other, other_weights)) in enumerate(zip(ddp, fsdp2, strict=True)):
            assert all(torch.equal(residuals[name], other[name]) for name in residuals), step
            assert all(map(torch.equal, weights, other_weights)), step


REFUSED = {
    "whole tensors": (tg.Plan(compress=tg.Compress(codecs.TopK(0.1))), "topk needs whole tensors.*SparseTwoShot"),
    "matrices": (tg.Plan(compress=tg.Compress(None, reducers.PowerSGD(2))), "powersgd sums whole gradients"),
    "linear": (tg.Plan(compress=tg.Compress(codecs.RandomK(0.1))), "linear sums whole gradients"),
    "ef21": (
        tg.Plan(compress=tg.Compress(codecs.IntBlock(4), feedback=feedback.EF21())),
        "ef21 remembers whole sums",
    ),
    "local clip": (tg.Plan(compress=tg.Compress(codecs.IntBlock(4)), local_clip=1.0), "local_clip needs the norm"),
    "zero": (tg.Plan(compress=tg.Compress(codecs.IntBlock(4)), guard=tg.Guard("zero")), 'on_nonfinite="zero"'),
    "second": (
        tg.Plan(compress=tg.Compress(codecs.TopK(0.05), reducers.SparseTwoShot(second=codecs.TopK(0.1)))),
        r"second=TopK.*drop second from SparseTwoShot",
    ),
}


def refusals():
    """Each with its words, and the model trains on as if nothing had been asked."""
    messages = []
    model = wrap(small_model(), "fsdp2")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for plan, words in REFUSED.values():
        with pytest.raises(tg.IncompatiblePlanError, match=words) as error:
            tg.attach(model, optimizer, plan)
        messages.append(str(error.value))
    for arguments, words in (({"overlap": "none"}, 'overlap="none"'),):
        with pytest.raises(tg.UnsupportedError, match=words):
            tg.attach(model, optimizer, tg.Plan(compress=tg.Compress(codecs.IntBlock(4), **arguments)))
    with pytest.raises(tg.UnsupportedError, match="every rank holds another part"):
        tg.attach(model, optimizer, tg.Plan(guard=tg.Guard(compare_every=5)))
    low = small_model()
    fully_shard(low, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16))
    with pytest.raises(tg.UnsupportedError, match=r"reduce_dtype=torch\.float32"):
        tg.attach(low, torch.optim.SGD(low.parameters(), lr=0.1), tg.Plan(compress=BLOCKS))
    # Compressed, then plain again: FSDP2 averages by itself as before.
    norms = []
    for plan in (tg.Plan(compress=CAST), tg.Plan(compress=tg.Compress()), tg.Plan(accumulate=tg.Accumulate(1))):
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan)
        for window in pipe.windows(ragged_batches(0)[:1]):
            for inputs, labels in window:
                pipe.backward(F.cross_entropy(model(inputs), labels))
            norms.append(pipe.step().grad_norm)
    return messages, norms


def test_what_cannot_run_on_shards_is_refused_with_the_reason():
    first, second = run_ranks(2, refusals)
    assert first == second
    messages, (compressed, dense, plain) = first
    assert len(set(messages)) == len(REFUSED)
    assert dense == plain == pytest.approx(compressed, rel=2e-2)


def nan_named():
    trained = Trained(small_model(), "fsdp2", CAST)
    try:
        trained.run(ragged_batches(dist.get_rank()), poison=(1, 1))
    except tg.NonFiniteGradientError as error:
        return str(error)
    return ""


def test_the_rank_with_the_nan_is_named():
    for message in run_ranks(2, nan_named):
        assert re.search(r"inf or NaN in the gradient of .*\(\d+ entries on rank 1\)", message)
        assert "rank 0" not in message
