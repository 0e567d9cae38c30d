"""`tightgrad bench headline`: a small GPT over slow links, dense and compressed: the same loss in how much of the time?

Loss curves come from links that are not limited, where dense training ends before tomorrow; what a step costs over the
slow link is timed there, compressed for the whole training, dense for some steps.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad.codecs import IntBlock, SizeAdaptive
from tightgrad.core.config import to_config
from tightgrad.feedback import ErrorFeedback
from tightgrad.reducers import PowerSGD
from tightgrad_lab.common import byte_model
from tightgrad_lab.common.byte_model import CONTEXT, ByteTransformer
from tightgrad_lab.network import NetRank, network, run_in_network

Progress = Callable[[str], object]
PLANS: dict[str, tg.Plan] = {
    "dense": tg.Plan(compress=tg.Compress()),
    "compressed": tg.Plan(
        compress=tg.Compress(SizeAdaptive(IntBlock(8), threshold=1024), PowerSGD(12), ErrorFeedback())
    ),
}
HELD_OUT = 0.1
HELD_OUT_SEED = 9
WARM_UP = 2


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Args:
        steps: of each training.
        seeds: trainings of each kind that differ in weights and batches.
        ranks: processes, each with one thread in a namespace of its own.
        rate_bits_per_second: of the slow links.
        dense_steps: of dense training that are timed over the slow links.
        width: of the model.
        layers: of the model.
        batch_size: pieces of text on each rank.
        learning_rate: of AdamW, reached after `warm_up` steps and lowered to 0 along a cosine.
        warm_up: steps.
        evaluations: of each training.
        held_out: pieces of text that are not trained on, on which bits per byte are measured.
    """

    steps: int = 200
    seeds: int = 3
    ranks: int = 4
    rate_bits_per_second: int = 10_000_000
    dense_steps: int = 7
    width: int = 192
    layers: int = 3
    batch_size: int = 4
    learning_rate: float = 2e-3
    warm_up: int = 40
    evaluations: int = 10
    held_out: int = 256


def run(settings: Settings, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Train and time.

    Returns:
        "curves": one for each plan and seed, [step, bits per byte] each; "timings": seconds and bytes of a step of each
        plan over the slow links; "summary".

    Raises:
        ArgumentError: this machine has no network namespaces for us.
    """
    curves: list[dict[str, Any]] = []
    timings: list[dict[str, Any]] = []
    with network(settings.ranks, None) as net:
        for seed in range(settings.seeds):
            for name in PLANS:
                limit = 60.0 + 20.0 * settings.steps
                job = (settings, name, seed, settings.steps)
                run_in_network(net, train, job, curves.append, timeout_seconds=limit)
                progress(f"{name}, seed {seed}: {curves[-1]['curve'][-1][1]:.3f} bits per byte")
    with network(settings.ranks, settings.rate_bits_per_second) as net:
        for name, steps in (("compressed", settings.steps), ("dense", settings.dense_steps)):
            limit = 60.0 + 120.0 * settings.steps
            run_in_network(net, train, (settings, name, 0, steps), timings.append, timeout_seconds=limit)
            progress(f"{name}: {timings[-1]['step_seconds']:.3f} s a step")
    return {
        "settings": asdict(settings),
        "plans": {name: to_config(plan) for name, plan in PLANS.items()},
        "curves": curves,
        "timings": timings,
        "summary": summary(curves, timings, settings),
    }


def summary(
    curves: list[dict[str, Any]], timings: list[dict[str, Any]], settings: Settings
) -> dict[str, float | bool | int]:
    """Both claims: the same loss, in how much of the time."""
    final = {name: [c["curve"][-1][1] for c in curves if c["plan"] == name] for name in PLANS}
    seconds = {timing["plan"]: timing["step_seconds"] for timing in timings}
    sent = {timing["plan"]: timing["wire_bytes"] for timing in timings}
    compressed = next(timing for timing in timings if timing["plan"] == "compressed")
    difference = statistics.mean(final["compressed"]) - statistics.mean(final["dense"])
    noise = 2 * statistics.stdev(final["dense"]) if settings.seeds > 1 else math.nan
    return {
        "dense_bits_per_byte": statistics.mean(final["dense"]),
        "compressed_bits_per_byte": statistics.mean(final["compressed"]),
        "difference_bits_per_byte": difference,
        "two_standard_deviations_of_dense": noise,
        "is_within_noise": bool(difference <= noise),
        "dense_seconds": settings.steps * seconds["dense"],
        "compressed_seconds": compressed["training_seconds"],
        "speedup": settings.steps * seconds["dense"] / compressed["training_seconds"],
        "compression_factor": sent["dense"] / sent["compressed"],
    }


def train(rank: NetRank, send: Callable[[Any], None], settings: Settings, name: str, seed: int, steps: int) -> None:
    """One training of `settings.steps` steps, of which `steps` are taken."""
    torch.manual_seed(seed)
    model = DistributedDataParallel(ByteTransformer(settings.width, settings.layers))
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, betas=(0.9, 0.98), fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    pipe = tg.attach(model, optimizer, PLANS[name], seed=seed, scheduler=scheduler)
    generator = torch.Generator().manual_seed(1000 * seed + rank.rank)
    training, held_out = texts(settings)
    every = max(1, settings.steps // settings.evaluations)
    curve, seconds, sent = [], [], []
    dist.barrier()
    for window in pipe.windows(pieces(training, settings.batch_size, generator) for _ in range(steps)):
        begun = time.perf_counter()
        for batch in window:
            pipe.backward(byte_model.loss(model, batch))
        record = pipe.step()
        seconds.append(time.perf_counter() - begun)
        sent.append(record.wire_bytes or 0)
        if (record.step + 1) % every == 0 and steps == settings.steps:
            curve.append([record.step + 1, bits_per_byte(model.module, held_out, rank)])
    if rank.rank == 0:
        send(
            {
                "plan": name,
                "seed": seed,
                "rate_bits_per_second": rank.rate_bits_per_second,
                "steps": steps,
                "step_seconds": statistics.median(seconds[WARM_UP:]),
                "training_seconds": sum(seconds),
                "wire_bytes": statistics.median(sent),
                "curve": curve,
            }
        )


def texts(settings: Settings) -> tuple[Tensor, Tensor]:
    """What is trained on, and pieces (held_out, CONTEXT + 1) of the rest."""
    text = byte_model.plays()
    edge = round(len(text) * (1 - HELD_OUT))
    generator = torch.Generator().manual_seed(HELD_OUT_SEED)
    return text[:edge], pieces(text[edge:], settings.held_out, generator)


def pieces(text: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random pieces: int64, shape (size, CONTEXT + 1)."""
    starts = torch.randint(len(text) - CONTEXT - 1, (size,), generator=generator)
    return text[starts.unsqueeze(1) + torch.arange(CONTEXT + 1)]


@torch.no_grad()
def bits_per_byte(model: nn.Module, held_out: Tensor, rank: NetRank) -> float:
    """Mean over the pieces, which the ranks share out. Collective: every rank must call it."""
    mine = held_out[rank.rank :: rank.ranks]
    total = torch.tensor([float(byte_model.loss(model, mine)) * len(mine), len(mine)], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total[0] / total[1]) / math.log(2)


def _rate(step: int, settings: Settings) -> float:
    if step < settings.warm_up:
        return (step + 1) / settings.warm_up
    done = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For a table: one row for each plan."""
    result = []
    for name in PLANS:
        timing = next(timing for timing in found["timings"] if timing["plan"] == name)
        about = found["summary"]
        result.append(
            {
                "plan": name,
                "bits_per_byte": about[f"{name}_bits_per_byte"],
                "step_seconds": timing["step_seconds"],
                "wire_bytes": timing["wire_bytes"],
                "training_seconds": about[f"{name}_seconds"],
            }
        )
    return result
