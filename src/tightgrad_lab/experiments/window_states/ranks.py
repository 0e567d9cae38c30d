"""The windows of `windows` on two ranks under DistributedDataParallel; and a rank that runs out of memory."""

import importlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad_lab.experiments.fragile import outcomes
from tightgrad_lab.experiments.window_states.machine import run_machine
from tightgrad_lab.experiments.window_states.settings import Settings
from tightgrad_lab.experiments.window_states.windows import (
    IGNORED,
    LENGTH,
    MICRO_BATCHES,
    SCENARIOS,
    VOCABULARY,
    Batch,
    Loop,
    Recorder,
    Tagger,
    Taken,
    batches_of,
    compared,
    exact_gradient,
    judged,
    mean_loss,
    num_tokens,
    together,
)
from tightgrad_lab.schema.accumulation import OutOfMemoryCell, StepCell
from tightgrad_lab.training.ranks import Rank, Send

RANKS = 2
AT_ONCE = 2
SAMPLES, FITS = 16, 10
"""Samples of a micro-batch, and how many rank 1's memory holds."""


def by_hand(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """`no_sync` around all micro-batches but each K-th, and every loss over K."""
    model = Tagger()
    ddp, optimizer = DistributedDataParallel(model), Recorder(model)
    for _ in range(epochs):
        for index, batch in enumerate(batches):
            optimizer.seen += 1
            is_last = (index + 1) % MICRO_BATCHES == 0
            with nullcontext() if is_last else ddp.no_sync():
                (mean_loss(ddp, batch) / MICRO_BATCHES).backward()
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
    return optimizer.taken


def with_tightgrad(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """The same pipeline as on one device."""
    model = Tagger()
    ddp, optimizer = DistributedDataParallel(model), Recorder(model)
    pipe = tg.attach(ddp, optimizer, tg.Plan(accumulate=tg.Accumulate(MICRO_BATCHES)), weight=num_tokens)
    for _ in range(epochs):
        for window in pipe.windows(batches):
            for batch in window:
                optimizer.seen += 1
                pipe.backward(mean_loss(ddp, batch))
            pipe.step()
    return optimizer.taken


LOOPS: dict[str, Loop] = {"loop": by_hand, "tightgrad": with_tightgrad}


def measure(rank: Rank, send: Send, settings: Settings) -> None:
    """The state machine, then both loops; rank 0 sends them. Collective: runs on every rank."""
    torch.set_num_threads(1)
    machine = run_machine(rank.rank, settings)
    found = {name: _cells(loop, rank, settings.seeds) for name, loop in LOOPS.items()}
    if rank.rank == 0:
        send(("machine", machine))
        send(("cells", found))


def _cells(loop: Loop, rank: Rank, seeds: int) -> dict[str, StepCell]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, scenario in SCENARIOS.items():
        for seed in range(seeds):
            everyone = [batches_of(name, seed, other) for other in range(rank.ranks)]
            taken = loop(everyone[rank.rank], scenario.epochs)
            for key, cell in judged(name, taken, everyone).items():
                found.setdefault(key, []).append(cell)
    return {key: together(cells) for key, cells in found.items()}


def _sentences(rank: int, size: int = SAMPLES) -> Batch:
    generator = torch.Generator().manual_seed(rank)
    input_ids, labels = (torch.randint(VOCABULARY, (SAMPLES, LENGTH), generator=generator) for _ in range(2))
    lengths = torch.randint(1, LENGTH + 1, (SAMPLES, 1), generator=generator)
    labels[torch.arange(LENGTH) >= lengths] = IGNORED
    return input_ids[:size], labels[:size]


def _check_memory(batch: Batch) -> None:
    if dist.get_rank() == 1 and len(batch[0]) > FITS:
        raise torch.OutOfMemoryError("CUDA out of memory. (provoked)")


def out_of_memory_by_hand() -> str:
    """Nothing catches the error."""
    ddp = DistributedDataParallel(Tagger())
    batch = _sentences(dist.get_rank())
    _check_memory(batch)
    mean_loss(ddp, batch).backward()
    return "done"


def out_of_memory_with_accelerate() -> str:
    """Accelerate's decorator around a training loop, as in its documentation; memory is short from the second step."""
    utils = importlib.import_module("accelerate.utils")
    dist.barrier()  # importing takes seconds, which are not to count as waiting

    @utils.find_executable_batch_size(starting_batch_size=SAMPLES)  # type: ignore[untyped-decorator]
    def train(batch_size: int) -> None:
        ddp = DistributedDataParallel(Tagger())
        batch = _sentences(dist.get_rank(), batch_size)
        for step in range(2):
            if step:
                _check_memory(batch)
            mean_loss(ddp, batch).backward()

    train()
    return "done"


def out_of_memory_with_tightgrad() -> str:
    """All ranks agree to cut, and the gradient is that of the batch: JSON."""
    model = Tagger()
    ddp, optimizer = DistributedDataParallel(model), Recorder(model)
    pipe = tg.attach(ddp, optimizer, tg.Plan(accumulate=tg.Accumulate(1, on_oom="split")), weight=num_tokens)

    def loss_of(batch: Batch) -> torch.Tensor:
        _check_memory(batch)
        return mean_loss(ddp, batch)

    (record,) = [pipe.run(window, loss_of) for window in pipe.windows([_sentences(dist.get_rank())])]
    exact = exact_gradient([_sentences(rank) for rank in range(dist.get_world_size())])
    return json.dumps(compared(optimizer.taken[0][1], exact) | {"retries": record.retries})


BODIES: dict[str, Callable[[], str]] = {
    "loop": out_of_memory_by_hand,
    "accelerate": out_of_memory_with_accelerate,
    "tightgrad": out_of_memory_with_tightgrad,
}
"""What each does when rank 1 of two runs out of memory."""


def out_of_memory(settings: Settings, done: Callable[[str], None]) -> dict[str, OutOfMemoryCell]:
    """A cell for each body whose framework is installed.

    Args:
        settings: of the experiment.
        done: called with each name when it has come to its end.
    """
    names = [name for name in BODIES if name != "accelerate" or find_spec("accelerate") is not None]

    def run(name: str) -> list[str]:
        return outcomes(
            RANKS, BODIES[name], seconds=settings.hang_seconds, collective_seconds=settings.collective_seconds
        )

    found = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {name: pool.submit(run, name) for name in names}
        for name, future in futures.items():
            found[name] = cell_of(future.result())
            done(name)
    return found


def cell_of(said: Sequence[str]) -> OutOfMemoryCell:
    """What the ranks said as one cell: "by_rank" what became of each, and rank 0's numbers if it has any."""
    try:
        numbers: list[dict[str, Any]] = [json.loads(one) for one in said]
    except ValueError:
        return {"outcome": "fails", "by_rank": list(said), "relative_error": None, "retries": None}
    worst = max(numbers, key=lambda one: one["relative_error"])
    return {
        "outcome": worst["outcome"],
        "by_rank": [one["outcome"] for one in numbers],
        "relative_error": worst["relative_error"],
        "retries": worst["retries"],
    }
