"""Z5: a run with PowerSGD that is stopped and taken up again."""

import io
import json
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from field.fragile import first_finished
from support.ranks import run_ranks

WIDTH = 256
STEPS = 6
SECONDS = 8.0  # it takes one; now and then the hook hangs (Z1), also on one rank
SEVERAL_BUCKETS, ONE_BUCKET = 0.6, 100.0  # MB


class Net(nn.Module):
    """Used in another order than defined, as often."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.c, self.a, self.b, self.d = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(inputs).relu()).relu()).relu())


def batches(first: int, last: int) -> Iterator[Tensor]:
    for step in range(first, last):
        yield torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(10 * step + dist.get_rank()))


def hooked(net: Net, state: PowerSGDState, bucket_mb: float, layouts: list[list[str]]) -> DistributedDataParallel:
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    wrapped = DistributedDataParallel(net, bucket_cap_mb=bucket_mb)

    def hook(state, bucket):
        layouts.append([names[id(parameter)] for parameter in bucket.parameters()])
        return powerSGD_hook(state, bucket)

    wrapped.register_comm_hook(state, hook)
    return wrapped


def resume_torch(bucket_mb: float) -> str:
    """The error at the first step after resuming, and whose residual the first bucket holds and gets."""
    net, layouts = Net(), []
    state = PowerSGDState(None, start_powerSGD_iter=2)
    wrapped = hooked(net, state, bucket_mb, layouts)
    for batch in batches(0, STEPS):
        layouts.clear()
        wrapped.zero_grad()
        wrapped(batch).square().mean().backward()
    saved = io.BytesIO()
    torch.save(state, saved)
    saved.seek(0)
    held = layouts[0]
    other, layouts = Net(), []
    again = hooked(other, torch.load(saved, weights_only=False), bucket_mb, layouts)
    try:
        again(next(batches(STEPS, STEPS + 1))).square().mean().backward()
    except RuntimeError as error:
        return json.dumps([type(error).__name__, held, layouts[0]])
    return json.dumps(["no error", held, layouts[0]])


def train(net: Net, bucket_mb: float, first: int, last: int, folder: str, *, load: bool) -> tuple[Tensor, ...]:
    wrapped = DistributedDataParallel(net, bucket_cap_mb=bucket_mb)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    plan = tg.Plan(compress=tg.Compress(None, tg.reducers.PowerSGD(1), tg.ErrorFeedback()))
    pipe = tg.attach(wrapped, optimizer, plan)
    if load:
        pipe.load(folder)
    for window in pipe.windows(batches(first, last)):
        for batch in window:
            pipe.backward(wrapped(batch).square().mean())
        pipe.step()
    pipe.save(folder)
    return tuple(parameter.detach().clone() for parameter in net.parameters())


def resume_tightgrad(folder: str, bucket_mb: float) -> list[bool]:
    """Stopped half-way and resumed with buckets of `bucket_mb`, against a run that was not stopped."""
    straight = train(Net(), SEVERAL_BUCKETS, 0, 2 * STEPS, f"{folder}/straight", load=False)
    net = Net()
    train(net, SEVERAL_BUCKETS, 0, STEPS, f"{folder}/stopped", load=False)
    other = Net()
    other.load_state_dict(net.state_dict())
    resumed = train(other, bucket_mb, STEPS, 2 * STEPS, f"{folder}/stopped", load=True)
    return [torch.equal(a, b) for a, b in zip(straight, resumed, strict=True)]


def assert_bitwise(folder, bucket_mb: float) -> None:
    for rank in run_ranks(2, resume_tightgrad, str(folder), bucket_mb):
        assert rank == [True] * 4


def test_z5_several_buckets(tmp_path, field_row):
    assert_bitwise(tmp_path, SEVERAL_BUCKETS)
    result, tried = first_finished(1, resume_torch, SEVERAL_BUCKETS, seconds=SECONDS)
    error, held, got = result or (" / ".join(sorted(set(tried))), [], [])
    field_row(
        "Z5 resume of PowerSGD, several buckets",
        "torch",
        f"{error} at the first step ({len(held)} layers' state, {len(got)} layers' bucket)"
        if result
        else f"{error} before there is a state to save",
        "bitwise as not stopped",
        peer_is_wrong=error != "no error",
    )


def test_z5_one_bucket(tmp_path, field_row):
    assert_bitwise(tmp_path, ONE_BUCKET)
    result, tried = first_finished(1, resume_torch, ONE_BUCKET, seconds=SECONDS)
    error, held, got = result or (" / ".join(sorted(set(tried))), [], [])
    wrong = sum(mine != theirs for mine, theirs in zip(held, got, strict=True))
    field_row(
        "Z5 resume of PowerSGD, one bucket",
        "torch",
        f"{error}: {wrong} of {len(held)} layers get another layer's residual",
        "bitwise as not stopped, also with other buckets",
        peer_is_wrong=not result or (error == "no error" and wrong > 0),
    )
