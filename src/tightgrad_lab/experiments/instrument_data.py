"""Measures what the book's instruments show: `python -m tightgrad_lab.experiments.instrument_data`.

Writes published/instruments.json: entries of a real gradient at successive steps, what a step of a small transformer
holds and takes, lines of text of different lengths with their losses, and what compressing costs on this machine.
"""

import statistics
import time
from typing import Any

import torch
from torch import nn

import tightgrad as tg
from tightgrad.codecs import Cast, IntBlock, TopK
from tightgrad.feedback import ErrorFeedback
from tightgrad_lab.common import byte_model, verse
from tightgrad_lab.environment import environment
from tightgrad_lab.planning.estimate import measure_activations, optimizer_memory
from tightgrad_lab.planning.measure import measure_path
from tightgrad_lab.planning.run import Matrices
from tightgrad_lab.schema import PUBLISHED, SCHEMA
from tightgrad_lab.training.files import write_json

COMMAND = "python -m tightgrad_lab.experiments.instrument_data"
NAME = "instruments.json"
TRAINED, STEPS, ENTRIES, SIZE = 100, 5, 64, 8
"""Steps of training before the gradients are taken, gradients, their entries, pieces of text of a step."""
PARAMETER = "encoder.layers.1.linear1.weight"
LINES = 512
SMALL, LARGE, REPEATS = 1, 32, 7
"""Micro-batches that are timed."""
PARAMETERS = 4_000_000
RANKS = (3, 8)
"""Of the paths that are measured."""
PLANS = {
    "bf16": tg.Plan(compress=tg.Compress(Cast("bfloat16"))),
    "int8": tg.Plan(compress=tg.Compress(IntBlock(8), feedback=ErrorFeedback())),
    "top1": tg.Plan(compress=tg.Compress(TopK(0.01, values=IntBlock(8)), feedback=ErrorFeedback())),
}


def gradients(model: nn.Module, generator: torch.Generator) -> dict[str, Any]:
    """The same entries of successive gradients: a stretch of the parameter that holds its largest one."""
    optimizer = torch.optim.AdamW(model.parameters(), byte_model.LEARNING_RATE)
    parameter = dict(model.named_parameters())[PARAMETER]
    first, taken = 0, []
    for step in range(TRAINED + STEPS):
        optimizer.zero_grad()
        byte_model.loss(model, byte_model.batch(SIZE, generator)).backward()
        assert parameter.grad is not None
        flat = parameter.grad.flatten()
        if step == TRAINED:
            first = max(0, int(flat.abs().argmax()) - ENTRIES // 3)
        if step >= TRAINED:
            taken.append(flat[first : first + ENTRIES].tolist())
        optimizer.step()
    return {"parameter": PARAMETER, "first": first, "after_steps": TRAINED, "steps": taken}


def memory(model: nn.Module, generator: torch.Generator) -> dict[str, Any]:
    """What the estimate of a step's memory follows from, and what a step takes."""
    optimizer = torch.optim.AdamW(model.parameters(), byte_model.LEARNING_RATE)
    held = optimizer_memory(optimizer)
    activations = measure_activations(
        lambda pieces: byte_model.loss(model, pieces), byte_model.batch(LARGE, generator), model.parameters()
    )
    small, large = (_seconds(model, size, generator) for size in (SMALL, LARGE))
    per_sample = (large - small) / (LARGE - SMALL)
    started = time.perf_counter()
    optimizer.step()
    return {
        "numels": [parameter.numel() for parameter in model.parameters()],
        "state_nbytes": held.state_nbytes,
        "step_nbytes": held.step_nbytes,
        "steps_all": held.steps_all,
        "one_nbytes": activations.one_nbytes,
        "samples": activations.samples,
        "nbytes": activations.nbytes,
        "seconds_per_sample": per_sample,
        "seconds_per_micro_batch": max(0.0, small - per_sample),
        "seconds_per_step": time.perf_counter() - started,
    }


def _seconds(model: nn.Module, size: int, generator: torch.Generator) -> float:
    """Forward and backward of a micro-batch."""
    found = []
    for _ in range(REPEATS):
        pieces = byte_model.batch(size, generator)
        started = time.perf_counter()
        byte_model.loss(model, pieces).backward()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


@torch.no_grad()
def lines(model: nn.Module, generator: torch.Generator) -> list[list[float]]:
    """Of random lines: bytes that are predicted, and their mean loss in nats."""
    found = []
    for _ in range(LINES):
        pieces = verse.batch(1, generator)
        found.append([int(verse.weight(pieces)), round(float(verse.loss(model, pieces)), 4)])
    return found


def paths() -> list[dict[str, Any]]:
    """What a rank computes for each plan, as a line in the number of ranks, for each parameter; and its calls."""
    few, many = RANKS
    model, found = Matrices(PARAMETERS), []
    for name, plan in PLANS.items():
        small, large = (measure_path(model, plan, ranks, 3) for ranks in RANKS)
        slope = max(0.0, (large.seconds - small.seconds) / (many - few))
        calls = {str(ranks): path.wire_bytes for ranks, path in zip(RANKS, (small, large), strict=True)}
        found.append(
            {
                "name": name,
                "operations": [call.operation for call in small.calls],
                "seconds": max(0.0, small.seconds - slope * few) / PARAMETERS,
                "seconds_per_rank": slope / PARAMETERS,
                "wire_bytes": calls,
            }
        )
    return found


def measure() -> dict[str, Any]:
    """Measure everything."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = byte_model.ByteTransformer()
    started = time.monotonic()
    found = {
        "gradient": gradients(model, generator),
        "memory": memory(model, generator),
        "lines": lines(model, generator),
        "paths": paths(),
        "num_parameters": PARAMETERS,
    }
    return {
        "schema": SCHEMA,
        "command": COMMAND,
        "environment": environment("cpu"),
        "seconds": time.monotonic() - started,
        **found,
    }


if __name__ == "__main__":
    write_json(PUBLISHED / NAME, measure())
