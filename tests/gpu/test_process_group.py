"""One rank under NCCL: collectives, DDP in every mode, FSDP2. The same code as with many ranks runs."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from gpu.test_pipeline import COMPRESS, batches, loss_of, network
from support.device import BACKENDS, DEVICE, ON_CUDA, skip_without_device
from support.wrapping import full
from tightgrad.collectives import TorchCollective

skip_without_device()
SMALL_BUCKETS = 0.001  # MB: each parameter of any size in its own
PLANS = {"dense": tg.Compress(), **COMPRESS}


@pytest.fixture(scope="module", params=BACKENDS)
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    store = tmp_path_factory.mktemp("group") / "store"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")
    if ON_CUDA:
        torch.cuda.set_device(DEVICE)
    dist.init_process_group(request.param, init_method=f"file://{store}", rank=0, world_size=1)
    yield request.param
    dist.destroy_process_group()


def test_collectives(group: str) -> None:
    collective = TorchCollective()
    assert collective.control_device.type == ("cuda" if group == "nccl" else "cpu")
    for dtype in (torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64, torch.float16, torch.bfloat16):
        tensor = torch.arange(7, device=DEVICE).to(dtype)
        assert torch.equal(collective.all_gather(tensor), tensor[None])
        assert torch.equal(collective.all_gather(tensor[:0]), tensor[None, :0])
        assert torch.equal(collective.all_to_all([tensor], [7])[0], tensor)
        assert torch.equal(collective.broadcast_(tensor.clone()), tensor)
        for op in ("sum", "max", "min"):
            assert torch.equal(collective.all_reduce_(tensor.clone(), op), tensor)  # type: ignore[arg-type]
    part = collective.split([[0]])
    assert torch.equal(part.all_gather(torch.ones(3, device=DEVICE)), torch.ones(1, 3, device=DEVICE))


def trained(
    compress: tg.Compress | None, overlap: str, *, poisoned: int = -1, **more: Any
) -> tuple[dict[str, Tensor], Any, list[Any]]:
    model = DistributedDataParallel(network(), bucket_cap_mb=SMALL_BUCKETS, **more)
    plan = tg.Plan(
        accumulate=tg.Accumulate(3),
        compress=compress and dataclasses.replace(compress, overlap=overlap),
        clip=tg.clip.GlobalNorm(0.3),
        guard=tg.Guard("skip"),
    )
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), plan)
    records = []
    for index, window in enumerate(pipe.windows(batches())):
        for batch in window:
            loss = loss_of(model, batch)
            pipe.backward(loss * math.nan if index == poisoned else loss)
        record = pipe.step()
        records.append((record.skip_reason, record.grad_norm, record.clip_coef, record.residual_norm, record.fell_back))
    return dict(model.module.state_dict()), pipe.state_dict()["slots"], records


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    else:
        assert one == other


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(
    "arguments", [{}, {"find_unused_parameters": True}, {"gradient_as_bucket_view": True}], ids=str
)
def test_overlapped_is_bitwise_the_explicit_mode(group: str, name: str, arguments: dict[str, bool]) -> None:
    """Buckets are reduced on a stream of their own; one window is not finite."""
    explicit = trained(PLANS[name], "none", poisoned=1, **arguments)
    overlapped = trained(PLANS[name], "backward", poisoned=1, **arguments)
    assert [reason for reason, *_ in explicit[2]] == [None, "nonfinite", None]
    for one, other in zip(explicit, overlapped, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", [name for name, compress in COMPRESS.items() if compress.fallback is None])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_one_liner_is_what_attach_does(group: str, name: str, scaled: bool) -> None:
    results = []
    for is_hook in (True, False):
        model = DistributedDataParallel(network(), bucket_cap_mb=SMALL_BUCKETS)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler(DEVICE.type, init_scale=1024.0) if scaled else None
        if is_hook:
            hook = tg.ddp_comm_hook(model, COMPRESS[name], scaler=scaler)
            for batch in batches():
                loss = loss_of(model, batch)
                (scaler.scale(loss) if scaler else loss).backward()
                if scaler:
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    optimizer.step()
                optimizer.zero_grad()
            slots = hook.state_dict()["slots"]
        else:
            pipe = tg.attach(model, optimizer, tg.Plan(compress=COMPRESS[name]), scaler=scaler)
            for window in pipe.windows(batches()):
                for batch in window:
                    pipe.backward(loss_of(model, batch))
                pipe.step()
            slots = pipe.state_dict()["slots"]
        results.append(({**model.module.state_dict()}, slots))
    assert_same(results[0][0], results[1][0])
    assert_same(dict(results[0][1]), dict(results[1][1]))


def test_many_windows_on_a_busy_device(group: str) -> None:
    """A model large enough for streams to run side by side, twenty steps: bitwise the explicit mode."""
    width = 1024 if ON_CUDA else 32

    def run(overlap: str) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(6)
            layers = [layer for _ in range(6) for layer in (nn.Linear(width, width), nn.Tanh())]
            model = DistributedDataParallel(nn.Sequential(*layers).to(DEVICE), bucket_cap_mb=8)
        compress = tg.Compress(tg.codecs.IntBlock(4), feedback=tg.ErrorFeedback(), overlap=overlap)
        pipe = tg.attach(model, torch.optim.AdamW(model.parameters(), fused=True), tg.Plan(compress=compress))
        drawing = torch.Generator().manual_seed(7)
        for window in pipe.windows([torch.randn(256, width, generator=drawing).to(DEVICE) for _ in range(20)]):
            for batch in window:
                pipe.backward(model(batch).square().mean())
            pipe.step()
        return [p.detach() for p in model.parameters()]

    for one, other in zip(run("none"), run("backward"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_without_compression_ddp_is_the_plain_module(group: str, micro_batches: int) -> None:
    results = []
    for wrapped in (True, False):
        model: nn.Module = DistributedDataParallel(network()) if wrapped else network()
        plan = tg.Plan(accumulate=tg.Accumulate(micro_batches), clip=tg.clip.GlobalNorm(0.3))
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
        for window in pipe.windows(batches()):
            for batch in window:
                pipe.backward(loss_of(model, batch))
            pipe.step()
        results.append([parameter.detach() for parameter in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("sync", ["last", "every", "auto"])
def test_fsdp2_is_the_plain_module(group: str, sync: str) -> None:
    results = []
    for wrapped in (True, False):
        model = network()
        if wrapped:
            mesh = init_device_mesh(DEVICE.type, (1,))
            fully_shard(model[3], mesh=mesh)
            fully_shard(model, mesh=mesh)
        plan = tg.Plan(accumulate=tg.Accumulate(3, sync=sync), clip=tg.clip.GlobalNorm(0.3))
        pipe = tg.attach(model, torch.optim.AdamW(model.parameters(), lr=0.01), plan)
        norms = []
        for window in pipe.windows(batches()):
            for batch in window:
                pipe.backward(loss_of(model, batch))
            norms.append(pipe.step().grad_norm)
        results.append(([full(parameter) for parameter in model.parameters()], norms))
    (sharded, norms), (plain, expected) = results
    assert norms == pytest.approx(expected, rel=1e-5)
    for one, other in zip(sharded, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_goes_through_the_group(group: str, tmp_path: Path) -> None:
    plan = tg.Plan(compress=COMPRESS["two shots"])
    model = DistributedDataParallel(network())
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    for window in pipe.windows(batches()):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        pipe.step()
    pipe.save(tmp_path)
    other = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    other.load(tmp_path)
    assert_same(dict(pipe.state_dict()["slots"]), dict(other.state_dict()["slots"]))
    record = other.flush()
    assert record.skipped is False
    with contextlib.suppress(KeyError):
        assert not any(bool(t.any()) for t in other.state_dict()["slots"]["residual"].values())
