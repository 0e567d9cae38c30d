"""Complex parameters beside real ones: right wherever nothing is compressed, and refused by name where something is."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from conformance.cases import CODECS, FEEDBACKS, REDUCERS
from support.ranks import run_ranks
from tightgrad.collectives import SingleCollective, TorchCollective, run_threaded

RANKS, MICRO_BATCHES, STEPS, LR = 2, 2, 3, 0.01
WINDOW = tg.Accumulate(MICRO_BATCHES)
CLIP = 0.5
RIGHT = {
    "accumulate": tg.Plan(accumulate=WINDOW),
    "clip": tg.Plan(accumulate=WINDOW, clip=tg.clip.GlobalNorm(CLIP)),
    "dense": tg.Plan(accumulate=WINDOW, compress=tg.Compress()),
    "zero": tg.Plan(accumulate=WINDOW, compress=tg.Compress(), guard=tg.Guard("zero")),
    "compare": tg.Plan(accumulate=WINDOW, compress=tg.Compress(), guard=tg.Guard(compare_every=1)),
    "local clip": tg.Plan(accumulate=WINDOW, compress=tg.Compress(), local_clip=1e9),
}


class Mixed(nn.Module):
    """Odd sizes, so that no complex tensor is at an even place by luck; a conjugate, which is lazy in torch."""

    def __init__(self, *, as_pairs=False):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.bias = nn.Parameter(torch.randn(7, generator=generator))
        wave = torch.randn(5, dtype=torch.complex64, generator=generator)
        self.wave = nn.Parameter(torch.view_as_real(wave) if as_pairs else wave)
        self.fine = nn.Parameter(torch.randn(3, dtype=torch.float64, generator=generator))
        self.deep = nn.Parameter(torch.randn(3, dtype=torch.complex128, generator=generator)) if not as_pairs else None

    def forward(self, inputs):
        wave = self.wave if self.wave.is_complex() else torch.view_as_complex(self.wave)
        total = (wave.conj() * inputs).abs().square().mean() + (wave.real * inputs).sum()
        total = total + (self.bias * inputs).square().sum() + (self.fine * inputs).square().sum().float()
        return total if self.deep is None else total + (self.deep.abs() * inputs).sum().float()


def inputs(rank, index):
    return torch.full((1,), 1.0 + rank + 0.3 * index)


def mine(rank, count=STEPS * MICRO_BATCHES):
    return [inputs(rank, index) for index in range(count)]


def expected(*, clip=None, **arguments):
    """The big batch on one process, by torch alone."""
    model = Mixed(**arguments)
    for step in range(STEPS):
        model.zero_grad()
        pairs = itertools.product(range(RANKS), range(step * MICRO_BATCHES, (step + 1) * MICRO_BATCHES))
        (sum(model(inputs(*pair)) for pair in pairs) / (RANKS * MICRO_BATCHES)).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(LR * parameter.grad)
    return [parameter.detach() for parameter in model.parameters()]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=LR)


def train(model, pipe, batches):
    for window in pipe.windows(batches):
        for batch in window:
            pipe.backward(model(batch))
        pipe.step()


def trained(plan, kind, rank, **arguments):
    inner = Mixed(**arguments)
    model = DistributedDataParallel(inner) if kind == "ddp" else inner
    pipe = tg.attach(model, sgd(inner), plan, collective=TorchCollective() if kind == "plain" else None)
    train(model, pipe, mine(rank))
    return [parameter.detach() for parameter in inner.parameters()]


def resumed_in_mid_window(folder):
    rank = dist.get_rank()
    model = DistributedDataParallel(Mixed())
    pipe = tg.attach(model, sgd(model), RIGHT["accumulate"])
    window = next(iter(pipe.windows(mine(rank))))
    pipe.backward(model(next(iter(window))))
    pipe.save(folder)
    model = DistributedDataParallel(Mixed())
    pipe = tg.attach(model, sgd(model), RIGHT["accumulate"])
    pipe.load(folder)
    train(model, pipe, mine(rank))
    return [parameter.detach() for parameter in model.parameters()]


def everything_right(folder):
    rank = dist.get_rank()
    results = {(name, kind): trained(plan, kind, rank) for name, plan in RIGHT.items() for kind in ("ddp", "plain")}
    results["resumed", "ddp"] = resumed_in_mid_window(folder)
    return results


def test_uncompressed_plans_are_right_on_all_ranks(tmp_path):
    first, second = run_ranks(RANKS, everything_right, str(tmp_path))
    for (name, kind), weights in first.items():
        for weight, other, wanted in zip(
            weights, second[name, kind], expected(clip=CLIP if name == "clip" else None), strict=True
        ):
            assert torch.equal(weight, other), (name, kind)
            torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-6, msg=f"{name} {kind}")


def pairs_compressed():
    plans = [
        tg.Plan(accumulate=WINDOW, compress=tg.Compress(tg.codecs.Cast("float32"), overlap=overlap))
        for overlap in ("none", "backward")
    ]
    return [trained(plan, "ddp", dist.get_rank(), as_pairs=True) for plan in plans]


def test_the_way_out_works():
    for rank in run_ranks(RANKS, pairs_compressed):
        for weights in rank:
            for weight, wanted in zip(weights, expected(as_pairs=True), strict=True):
                torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-6)


def refusal(call):
    with pytest.raises(tg.UnsupportedError, match="complex") as found:
        call()
    return str(found.value)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_every_codec_is_refused(codec):
    model = Mixed()
    text = refusal(lambda: tg.attach(model, sgd(model), tg.Plan(compress=tg.Compress(codec))))
    assert f"'wave' (and 1 more) is torch.complex64, and {codec.card.id} compresses real numbers only" in text
    assert "torch.view_as_complex(wave) in forward" in text


def all_compressions():
    made = [tg.Compress(tg.codecs.TopK(0.5), feedback=case.feedback) for case in FEEDBACKS]
    for reducer, codec in itertools.product(
        (case.reducer for case in REDUCERS), (None, tg.codecs.Sign(), tg.codecs.IntBlock(8), tg.codecs.TopK(0.5))
    ):
        if reducer.refuses(codec) is None and reducer.card.id != "dense":
            made.append(tg.Compress(codec, reducer))
    return made


def test_every_reducer_and_feedback_is_refused_also_in_local_updates():
    def body(collective):
        for compress in all_compressions():
            model = Mixed()
            refusal(lambda m=model, c=compress: tg.attach(m, sgd(m), tg.Plan(compress=c), collective=collective))
            updates = tg.DiLoCo(plan=tg.Plan(compress=compress), momentum=0.0)
            refusal(lambda m=model, u=updates: tg.attach_local(m, u, collective=collective))

    assert len({compress.reducer.card.id for compress in all_compressions()}) >= 5
    run_threaded(RANKS, body)


def refused_by_wrappers():
    int8 = tg.codecs.IntBlock(8)
    hooks = [(DistributedDataParallel(Mixed()), tg.Compress(codec)) for codec in (int8, None)]
    said = [refusal(lambda h=hook: tg.ddp_comm_hook(*h)) for hook in hooks]
    for overlap, codec in (("none", int8), ("backward", int8), ("backward", None)):
        model = DistributedDataParallel(Mixed())
        plan = tg.Plan(compress=tg.Compress(codec, overlap=overlap))
        said.append(refusal(lambda m=model, p=plan: tg.attach(m, sgd(m), p)))
    model = fully_shard(Mixed())
    said.append(refusal(lambda: tg.attach(model, sgd(model), tg.Plan(compress=tg.Compress(int8)))))
    return said


def test_hook_overlap_and_fsdp2_refuse_on_every_rank():
    first, second = run_ranks(RANKS, refused_by_wrappers)
    assert first == second
    assert len(first) == 6
    assert "gives one half" in first[1]


def test_real_parameters_and_frozen_complex_ones_are_compressed():
    model = Mixed()
    model.wave.requires_grad_(False)
    model.deep.requires_grad_(False)
    pipe = tg.attach(model, sgd(model), tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(8))))
    train(model, pipe, mine(0))
    assert not torch.equal(model.bias, Mixed().bias)


@pytest.mark.parametrize("updates", [tg.LocalSGD(every=2), tg.DiLoCo(every=2)])
def test_local_updates_are_right_and_come_back_from_a_file(updates, tmp_path: Path):
    model = Mixed()
    outer = tg.attach_local(model, updates, collective=SingleCollective())
    start = [parameter.detach().clone() for parameter in model.parameters()]

    def move():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)

    for _ in range(updates.every):
        move()
        outer.step()
    for parameter, before in zip(model.parameters(), start, strict=True):
        wanted = before - updates.outer_lr * (1 + updates.outer_momentum) * 0.75 * before
        torch.testing.assert_close(parameter.detach(), wanted)
    outer.save(tmp_path)
    saved = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(updates.every):
        move()
        outer.step()
    outer.load(tmp_path)
    assert all(map(torch.equal, model.parameters(), saved))
    velocity = outer.state_dict()["slots"].get("outer_velocity", {})
    assert velocity.get("wave", model.wave).dtype is torch.complex64
