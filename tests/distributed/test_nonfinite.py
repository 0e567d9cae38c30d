"""NaN or inf on one rank at a random step, under every policy and wrapper: ranks agree, and the run ends as it says."""

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import full

WINDOWS = 6
MICRO_BATCHES = 2
EXPLICIT = ("plain", "ddp explicit")  # modes in which the pipeline sums over ranks, and so knows whose NaN it is
MODES = (*EXPLICIT, "ddp", "fsdp2")
CLIPPERS = (
    tg.clip.AutoClip(percentile=50.0),
    tg.clip.ZClip(warmup_steps=2),
    tg.clip.AdaGC(warmup_steps=2, max_norm=0.5),
)


class Spoil(torch.autograd.Function):
    """Multiplies gradients that come back by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class Net(nn.Module):
    """The gradients of `first` are spoilt; those of `second` are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 9)
        self.second = nn.Linear(9, 5)

    def forward(self, inputs: Tensor, factor: float) -> Tensor:
        return self.second(Spoil.apply(torch.tanh(self.first(inputs)), factor))


@dataclass(frozen=True)
class Trouble:
    """Where the gradient is spoilt, and how."""

    window: int
    rank: int
    factor: float

    @classmethod
    def drawn(cls, seed: int, world_size: int) -> "Trouble":
        chooser = random.Random(seed)
        bad = float("nan") if seed % 2 else float("inf")
        return cls(chooser.randrange(1, WINDOWS - 1), chooser.randrange(world_size), bad)


def wrapped(mode: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
    if mode.startswith("ddp"):
        return DistributedDataParallel(model)
    return fully_shard(model) if mode == "fsdp2" else model


def attached(mode: str, policy: str, clip: Any) -> tuple[nn.Module, torch.optim.Optimizer, tg.GradientPipeline]:
    model = wrapped(mode)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    compress = None
    if mode == "ddp explicit":
        lossy = tg.Compress(tg.codecs.TopK(0.3), feedback=tg.ErrorFeedback())
        compress = tg.Compress() if policy == "propagate" else lossy
    accumulate = tg.Accumulate(MICRO_BATCHES)
    plan = tg.Plan(accumulate=accumulate, compress=compress, clip=clip, guard=tg.Guard(policy))
    collective = tg.collectives.TorchCollective() if mode == "plain" else None
    return model, optimizer, tg.attach(model, optimizer, plan, collective=collective)


def micro_batch(window: int, index: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * window + 10 * index + dist.get_rank())
    size = 2 + (window + index + dist.get_rank()) % 3
    return torch.randn(size, 7, generator=generator), torch.randint(0, 5, (size,), generator=generator)


def trained(mode: str, policy: str, clip: Any, factors: dict[int, float], without: int | None = None) -> dict[str, Any]:
    """Train; gradients of window w on this rank are multiplied by factors[w]. Window `without` does not exist."""
    model, optimizer, pipe = attached(mode, policy, clip)
    windows = [window for window in range(WINDOWS) if window != without]
    loader = [(*micro_batch(window, index), window) for window in windows for index in range(MICRO_BATCHES)]
    outcomes: list[str | None] = []
    for window in pipe.windows(loader):
        for inputs, labels, number in window:
            pipe.backward(F.cross_entropy(model(inputs, factors.get(number, 1.0)), labels))
        try:
            outcomes.append(pipe.step().skip_reason)
        except tg.NonFiniteGradientError as error:
            outcomes.append(str(error))
    states = [state for _, state in sorted(optimizer.state_dict()["state"].items())]
    return {
        "outcomes": outcomes,
        "weights": [full(parameter) for parameter in model.parameters()],
        "optimizer": [full(value) for state in states for value in state.values()],
        "pipeline": pipe.state_dict(),
    }


def same(one: Any, other: Any) -> bool:
    """Bitwise, NaN included."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, DTensor):
        return same(one.to_local(), other.to_local())
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(nan=1e30), other.nan_to_num(nan=1e30))
    return bool(one == other)


KEPT = ("weights", "optimizer")


def every_mode(policy: str, seed: int) -> dict[str, Any]:
    trouble = Trouble.drawn(seed, dist.get_world_size())
    here = {trouble.window: trouble.factor} if dist.get_rank() == trouble.rank else {}
    clip = CLIPPERS[seed % len(CLIPPERS)]
    found: dict[str, Any] = {}
    for mode in MODES:
        run = trained(mode, policy, clip, here)
        found[mode] = run
        if policy in ("skip", "raise"):
            run["expected"] = trained(mode, policy, clip, {}, without=trouble.window)
        elif policy == "zero":
            zeroed = here if mode in EXPLICIT else {trouble.window: 0.0}
            run["expected"] = trained(mode, policy, clip, dict.fromkeys(zeroed, 0.0))
    return found


def every_policy(seed: int) -> dict[str, dict[str, Any]]:
    return {policy: every_mode(policy, seed) for policy in ("skip", "raise", "zero", "propagate")}


@cache
def trained_on_ranks(world_size: int, seed: int) -> list[dict[str, dict[str, Any]]]:
    return run_ranks(world_size, every_policy, seed)


def agreed(world_size: int, policy: str, seed: int) -> tuple[Trouble, list[dict[str, Any]]]:
    """What each rank found, after a check that they agree."""
    by_rank = [found[policy] for found in trained_on_ranks(world_size, seed)]
    for mode in MODES:
        first = by_rank[0][mode]
        for other in by_rank[1:]:
            assert same(
                [first[key] for key in ("outcomes", "weights")], [other[mode][key] for key in ("outcomes", "weights")]
            )
    return Trouble.drawn(seed, world_size), by_rank


def grid(test: Any) -> Any:
    """One draw in every run of the tests, five more in the slow ones."""
    slow = [pytest.param(*draw, marks=pytest.mark.slow) for draw in ((2, 0), (2, 1), (2, 5), (3, 2), (3, 4))]
    return pytest.mark.parametrize(("world_size", "seed"), [(3, 3), *slow])(test)


@grid
def test_a_skipped_step_leaves_no_trace(world_size: int, seed: int) -> None:
    """Weights, moments, residuals, the clipper's history and all counters are those of a run without the window."""
    trouble, by_rank = agreed(world_size, "skip", seed)
    for found in by_rank:
        for mode, run in found.items():
            expected = run["expected"]
            wanted: list[str | None] = [None] * WINDOWS
            wanted[trouble.window] = "nonfinite"
            assert run["outcomes"] == wanted, mode
            assert expected["outcomes"] == [None] * (WINDOWS - 1)
            for key in KEPT:
                assert same(run[key], expected[key]), (mode, key)
            assert run["pipeline"]["slots"], mode
            assert same(*({**one["pipeline"], "num_consumed": 0} for one in (run, expected))), mode


@grid
def test_raise_says_where_on_every_rank_and_changes_nothing(world_size: int, seed: int) -> None:
    trouble, by_rank = agreed(world_size, "raise", seed)
    everyone = ", ".join(map(str, range(world_size)))
    for found in by_rank:
        for mode, run in found.items():
            outcomes = list(run["outcomes"])
            said = outcomes.pop(trouble.window)
            assert outcomes == [None] * (WINDOWS - 1)
            assert "first.weight" in said
            assert "first.bias" in said
            assert "second" not in said
            assert f"on rank {trouble.rank if mode in EXPLICIT else everyone})" in said, (mode, said)
            for key in KEPT:
                assert same(run[key], run["expected"][key]), (mode, key)


@grid
def test_zero_takes_the_step_without_these_entries(world_size: int, seed: int) -> None:
    """On the rank where they are, before it sends them; where the wrapper sums, in the sum."""
    _, by_rank = agreed(world_size, "zero", seed)
    for found in by_rank:
        for mode, run in found.items():
            assert run["outcomes"] == [None] * WINDOWS
            assert all(bool(weight.isfinite().all()) for weight in run["weights"])
            for key in KEPT:
                assert same(run[key], run["expected"][key]), (mode, key)


@grid
def test_propagate_is_plain_pytorch(world_size: int, seed: int) -> None:
    """The step is taken, and every rank's weights are NaN alike."""
    _, by_rank = agreed(world_size, "propagate", seed)
    for found in by_rank:
        for run in found.values():
            assert run["outcomes"] == [None] * WINDOWS
            first = run["weights"][:2]
            assert all(bool(weight.isnan().all()) for weight in first)
