"""Low precision under every wrapper: bfloat16 gradients add up in float32, autocast and scaler change no bit."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import full, ragged_batches, small_model, wrap
from tightgrad.collectives import TorchCollective

MANY = 128  # one sum in bfloat16 is 6 % off by then, rounding once 0.4 %
SUMS = (
    ("plain", "last", torch.bfloat16),
    ("ddp", "last", torch.bfloat16),
    ("ddp compressed", "last", torch.bfloat16),
    ("fsdp2", "last", torch.bfloat16),
    ("fsdp2", "every", torch.bfloat16),
    ("fsdp2", "last", torch.float32),
    ("fsdp2", "every", torch.float32),
)


class Scalar(nn.Module):
    """Its gradient is the factor, exactly."""

    def __init__(self, dtype):
        super().__init__()
        self.values = nn.Parameter(torch.ones(64, dtype=dtype))

    def forward(self, factor):
        return (self.values * factor).sum()


def shard(model):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)), mp_policy=policy)


def add_up():
    """Each case's delivered gradient of a window of many equal micro-batches."""
    factor = (0.01 * torch.rand(64, generator=torch.Generator().manual_seed(0))).bfloat16()
    delivered = {}
    for kind, sync, dtype in SUMS:
        model = Scalar(dtype)
        wrapped = {"plain": lambda m: m, "fsdp2": shard}.get(kind, DistributedDataParallel)(model)
        captured = []

        class Capture(torch.optim.SGD):
            def step(self, closure=None, captured=captured, model=model):
                captured.append(full(model.values.grad))

        plan = tg.Plan(
            accumulate=tg.Accumulate(MANY, sync=sync if kind == "fsdp2" else "auto"),
            compress=tg.Compress() if kind.endswith("compressed") else None,
        )
        collective = TorchCollective() if kind == "plain" else None
        pipe = tg.attach(
            wrapped, Capture(model.parameters(), lr=0.0), plan, weight=lambda batch: 1, collective=collective
        )
        for window in pipe.windows([factor] * MANY):
            for batch in window:
                pipe.backward(wrapped(batch))
            pipe.step()
        delivered[kind, sync, dtype] = captured[0].double()
    return factor.double(), delivered


def test_many_bfloat16_gradients_are_added_up_in_float32():
    factor, delivered = run_ranks(2, add_up)[0]
    assert len(delivered) == len(SUMS)
    for case, gradient in delivered.items():
        error = float((gradient - factor).norm() / factor.norm())
        assert error < 2**-8, f"{case}: {error:.3g}, one rounding to bfloat16 is the most"


SCALED = [(kind, sync) for kind in ("ddp", "ddp compressed", "fsdp2", "fsdp2 policy") for sync in ("last", "every")]


def train(kind, sync, scaler, overflow_at=None):
    """Weights, residual and records after a few windows of autocast (or the policy's) bfloat16."""
    bare = small_model()
    model = shard(bare) if kind == "fsdp2 policy" else wrap(bare, kind.split()[0])
    compress = tg.Compress(tg.codecs.TopK(0.1), feedback=tg.ErrorFeedback()) if "compressed" in kind else None
    plan = tg.Plan(
        accumulate=tg.Accumulate(2, sync="auto" if compress else sync),
        compress=compress,
        clip=tg.clip.GlobalNorm(0.2),
    )
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), plan, scaler=scaler)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if kind != "fsdp2 policy" else nullcontext()
    records, seen = [], 0
    for window in pipe.windows(ragged_batches(dist.get_rank(), (8, 4, 6, 8, 2, 3))):
        for inputs, labels in window:
            with autocast:
                loss = F.cross_entropy(model(inputs).float(), labels)
            pipe.backward(loss * (1e36 if seen == overflow_at and dist.get_rank() == 1 else 1.0))
            seen += 1
        records.append(pipe.step())
    weights = torch.cat([full(p).flatten() for p in model.parameters()])
    return weights, [(r.skip_reason, r.grad_norm, r.loss_scale) for r in records]


def make_scaler():
    return GradScaler("cpu", init_scale=2.0**14, growth_interval=2)


def train_all():
    found = {}
    for case in SCALED:
        own = make_scaler()
        found[case] = (train(*case, None), train(*case, own), own.get_scale())
    for case in SCALED[::2]:
        own = make_scaler()
        found[case, "overflow"] = (train(*case, own, overflow_at=2), own.get_scale())
    return found


def test_a_scaler_changes_nothing_but_the_range():
    ranks = run_ranks(2, train_all)
    for found in ranks:
        for case in SCALED:
            (weights, records), (own_weights, own_records), scale = found[case]
            assert torch.equal(weights, own_weights), f"{case}: S is a power of two, so it cancels to the bit"
            assert [norm for _, norm, _ in records] == [norm for _, norm, _ in own_records], case
            assert [s for _, _, s in own_records] == [2.0**14, 2.0**14, 2.0**15], case
            assert scale == 2.0**15
        for case in SCALED[::2]:
            (weights, records), scale = found[case, "overflow"]
            assert [reason for reason, _, _ in records] == [None, "nonfinite", None], f"{case}: all ranks skip"
            assert scale == 2.0**13
            assert torch.equal(weights, ranks[0][case, "overflow"][0][0])


def refusals():
    """Gradients that FSDP2 would add up in bfloat16 over a window."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = fully_shard(small_model(), mesh=init_device_mesh("cpu", (dist.get_world_size(),)), mp_policy=policy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(tg.UnsupportedError, match=r"reduce_dtype=torch\.float32") as error:
        tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(2, sync="last")))
    tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(2, sync="every")))
    return str(error.value)


def test_fsdp2_that_would_add_up_in_low_precision_is_refused():
    first, second = run_ranks(2, refusals)
    assert first == second
    assert "bfloat16" in first
