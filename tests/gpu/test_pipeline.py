"""The whole path in one process on the device."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightgrad as tg
from support.capture import Capture
from support.device import DEVICE, ON_CUDA, skip_without_device
from tightgrad import codecs, feedback, reducers

skip_without_device()

Batch = tuple[Tensor, Tensor]
COMPRESS = {
    "two shots": tg.Compress(codecs.IntBlock(8, block_size=16), feedback=tg.ErrorFeedback()),
    "stochastic": tg.Compress(codecs.QSGD(levels=7)),
    "sparse, dgc": tg.Compress(codecs.TopK(0.05), feedback=feedback.MomentumCorrection(0.9)),
    "linear": tg.Compress(codecs.RandomK(0.2), feedback=tg.ErrorFeedback("int8")),
    "ef21": tg.Compress(codecs.TopK(0.1), feedback=feedback.EF21()),
    "low rank": tg.Compress(None, reducers.PowerSGD(2), tg.ErrorFeedback()),
    "sparse two shots": tg.Compress(codecs.TopK(0.1), reducers.SparseTwoShot(), tg.ErrorFeedback()),
    "gathered": tg.Compress(codecs.SampledThreshold(0.1), feedback=tg.ErrorFeedback()),
    "voted": tg.Compress(codecs.Sign(32), reducers.MajorityVote(), tg.ErrorFeedback()),
    "small ones dense": tg.Compress(codecs.SizeAdaptive(codecs.IntBlock(4), threshold=300)),
    "falls back": tg.Compress(codecs.TopK(0.01), feedback=tg.ErrorFeedback(), fallback="dense", max_relative_error=0.2),
}


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(20, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 17), nn.ReLU(), nn.Linear(17, 3)
        return nn.Sequential(*layers).to(DEVICE, dtype)


def batches(sizes: tuple[int, ...] = (8, 4, 6, 8, 2, 3, 5), dtype: torch.dtype = torch.float32) -> list[Batch]:
    drawing = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(size, 20, generator=drawing).to(DEVICE, dtype),
            torch.randint(0, 3, (size,), generator=drawing).to(DEVICE),
        )
        for size in sizes
    ]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).float(), batch[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_accumulated_gradients_are_those_of_one_batch(dtype: torch.dtype) -> None:
    model = network(dtype).eval()
    captured = Capture(model.named_parameters())
    pipe = tg.attach(model, captured, tg.Plan(accumulate=tg.Accumulate(3)))
    loader = batches(dtype=dtype)
    for window in pipe.windows(loader):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        pipe.step()
    reference = network(dtype).eval().double()
    for step, start in zip(captured.steps, range(0, len(loader), 3), strict=True):
        inputs, labels = (torch.cat(parts) for parts in zip(*loader[start : start + 3], strict=True))
        reference.zero_grad()
        F.cross_entropy(reference(inputs.double()), labels).backward()
        found = torch.cat([grad.double().flatten() for grad in step.values() if grad is not None])
        wanted = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None])
        assert float((found - wanted).norm() / wanted.norm()) < (2e-6 if dtype is torch.float32 else 0.02)


def trained(plan: tg.Plan, device: torch.device, poisoned: int = -1) -> tuple[list[Tensor], list[tg.StepRecord], Any]:
    model = network().to(device)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), plan)
    records = []
    for index, window in enumerate(pipe.windows([(x.to(device), y.to(device)) for x, y in batches()])):
        for batch in window:
            loss = loss_of(model, batch)
            pipe.backward(loss * math.nan if index == poisoned else loss)
        records.append(pipe.step())
    return [p.detach().cpu() for p in model.parameters()], records, pipe.state_dict()["slots"]


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_steps_are_those_of_the_cpu(name: str) -> None:
    """To an 8-bit level here and there; draws differ, and PowerSGD's factors are rounded otherwise."""
    plan = tg.Plan(accumulate=tg.Accumulate(2), compress=COMPRESS[name], clip=tg.clip.GlobalNorm(0.3))
    there, records, slots = trained(plan, DEVICE)
    here, expected, _ = trained(plan, torch.device("cpu"))
    assert [record.wire_bytes for record in records] == [0] * len(records)
    assert all(tensor.device.type == DEVICE.type for held in slots.values() for tensor in held.values())
    for one, other in zip(records, expected, strict=True):
        assert (one.skip_reason, one.fell_back, one.weight) == (other.skip_reason, other.fell_back, other.weight)
        if name != "stochastic":
            assert one.grad_norm == pytest.approx(other.grad_norm, rel=0.02)
    if name != "stochastic":
        for one, other in zip(there, here, strict=True):
            torch.testing.assert_close(one, other, rtol=0.02, atol=5e-3)


def test_a_skipped_step_leaves_no_trace_in_residuals() -> None:
    plan = tg.Plan(accumulate=tg.Accumulate(3), compress=COMPRESS["two shots"], guard=tg.Guard("skip"))
    _, records, slots = trained(plan, DEVICE, poisoned=1)
    assert [record.skipped for record in records] == [False, True, False]
    assert all(bool(tensor.isfinite().all()) for tensor in slots["residual"].values())


@pytest.mark.parametrize("name", ["two shots", "linear", "low rank", "stochastic"])
def test_a_resumed_run_is_bit_identical(name: str, tmp_path: Path) -> None:
    """Saved in the middle of a window to a file, which holds no device."""
    plan = tg.Plan(accumulate=tg.Accumulate(3), compress=COMPRESS[name], clip=tg.clip.ZClip(warmup_steps=1))

    def run(stop: int | None, resume: Path | None) -> list[Tensor]:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        pipe = tg.attach(model, optimizer, plan)
        loader = batches()
        if resume is not None:
            held = torch.load(resume / "model.pt", map_location="cpu", weights_only=True)
            model.load_state_dict(held["model"])
            optimizer.load_state_dict(held["optimizer"])
            loader = loader[pipe.load(resume) :]
        seen = 0
        for window in pipe.windows(loader):
            for batch in window:
                pipe.backward(loss_of(model, batch))
                seen += 1
                if seen == stop:
                    pipe.save(tmp_path)
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save(state, tmp_path / "model.pt")
                    return []
            pipe.step()
        return [p.detach() for p in model.parameters()]

    whole = run(None, None)
    run(5, None)
    for one, other in zip(run(None, tmp_path), whole, strict=True):
        assert torch.equal(one, other)


LIMIT_NBYTES = 2**31


@contextmanager
def little_memory() -> Iterator[None]:
    """2 GiB of this device are all that this process may have."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction(LIMIT_NBYTES / total, DEVICE)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
        torch.cuda.empty_cache()


@pytest.mark.skipif(not ON_CUDA, reason="fills a GPU's memory")
def test_out_of_memory_is_retried_with_smaller_micro_batches() -> None:
    """Activations of 4 GiB in a process that may have 2: the same gradient from smaller pieces."""
    drawing = torch.Generator().manual_seed(4)
    batch = torch.randn(2**16, 1024, generator=drawing).to(DEVICE)  # 256 MiB

    def gradient(*, limited: bool) -> tuple[Tensor, tg.StepRecord]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            layers = [layer for _ in range(8) for layer in (nn.Linear(1024, 1024), nn.Tanh())]
            model = nn.Sequential(*layers).to(DEVICE)
        captured = Capture(model.named_parameters())
        pipe = tg.attach(model, captured, tg.Plan(accumulate=tg.Accumulate(1, on_oom="split")))
        window = next(pipe.windows([batch]))
        with little_memory() if limited else nullcontext():
            record = pipe.run(window, lambda piece: model(piece).square().mean())
        return torch.cat([g.flatten() for g in captured.steps[0].values() if g is not None]).cpu(), record

    whole, record = gradient(limited=False)
    assert record.retries == 0
    pieces, record = gradient(limited=True)
    assert record.retries >= 1
    assert record.weight == len(batch)
    assert float((pieces.double() - whole.double()).norm() / whole.double().norm()) < 1e-5


@pytest.mark.skipif(not ON_CUDA, reason="fills a GPU's memory")
def test_a_sample_that_is_too_large_is_an_error() -> None:
    model = nn.Linear(1, 1).to(DEVICE)
    pipe = tg.attach(model, Capture(model.named_parameters()), tg.Plan(accumulate=tg.Accumulate(1, on_oom="split")))
    window = next(pipe.windows([torch.ones(2, 2**20, 1, device=DEVICE)]))
    with little_memory(), pytest.raises(tg.OutOfMemoryError, match="one sample"):
        pipe.run(window, lambda piece: (model(piece) * torch.ones(1024, device=DEVICE)).square().mean())
