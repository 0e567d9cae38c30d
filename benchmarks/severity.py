"""What a mean of micro-batch means costs: one loop as it is often written beside the same loop divided by its targets.

    python benchmarks/severity.py benchmarks/results/2026-11-30-severity.json

A byte transformer learns Shakespeare's plays from pieces of 1, 3, 10 or 60 bytes, ragged as answers of an instruction
set are; a window is 4 micro-batches of 2 pieces. Both loops see the same pieces, in the same order, from the same
weights. What is measured is the loss on pieces of 60 bytes of a play that was not seen: over all bytes, over the first
ten (which short pieces teach too) and over the rest. Under ten minutes of one core.
"""

import json
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tightgrad_lab.common.byte_model import ByteTransformer, plays
from tightgrad_lab.environment import environment

LENGTHS, LONGEST, EARLY = (1, 3, 10, 60), 60, 10
MICRO_BATCHES, PIECES = 4, 2
STEPS, EVERY, RATE, WIDTH, LAYERS = 1200, 100, 1e-3, 64, 2
SEEDS = (0, 1, 2)
HELD_OUT = 512
IGNORED = -100
MicroBatch = tuple[Tensor, Tensor]


def windows(text: Tensor, seed: int) -> Iterator[list[MicroBatch]]:
    """Windows of inputs and targets; what a piece lacks to the longest of its micro-batch is ignored."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        window = []
        for _ in range(MICRO_BATCHES):
            lengths = torch.tensor(LENGTHS)[torch.randint(len(LENGTHS), (PIECES,), generator=generator)]
            starts = torch.randint(len(text) - LONGEST - 1, (PIECES,), generator=generator)
            places = torch.arange(int(lengths.max()))
            pieces = text[starts.unsqueeze(1) + torch.arange(len(places) + 1)]
            window.append((pieces[:, :-1], pieces[:, 1:].masked_fill(places >= lengths.unsqueeze(1), IGNORED)))
        yield window


def summed(model: ByteTransformer, micro_batch: MicroBatch) -> Tensor:
    """Sum of the losses of a micro-batch."""
    inputs, targets = micro_batch
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")


def count(micro_batch: MicroBatch) -> int:
    """Its targets."""
    return int((micro_batch[1] != IGNORED).sum())


def mean_of_means(window: list[MicroBatch], place: int) -> float:
    """What each target counts if a micro-batch's mean is divided by the number of micro-batches."""
    return 1 / (count(window[place]) * len(window))


def by_targets(window: list[MicroBatch], place: int) -> float:
    """What each target counts if the window's sum is divided by its targets."""
    return 1 / sum(map(count, window))


WAYS: dict[str, Callable[[list[MicroBatch], int], float]] = {"mean of means": mean_of_means, "by targets": by_targets}


def evaluated(model: ByteTransformer, pieces: Tensor) -> dict[str, float]:
    """Mean loss in nats over all bytes, the first ones and the rest."""
    with torch.no_grad():
        scores = model(pieces[:, :-1]).flatten(0, 1)
        each = functional.cross_entropy(scores, pieces[:, 1:].flatten(), reduction="none").view(len(pieces), -1)
    return {"loss": float(each.mean()), "early": float(each[:, :EARLY].mean()), "late": float(each[:, EARLY:].mean())}


def trained(way: str, seed: int) -> list[dict[str, float]]:
    """Train once; the losses on what was not seen, every so many steps."""
    text = plays()
    seen, unseen = text[: len(text) * 7 // 8], text[len(text) * 7 // 8 :]
    starts = torch.linspace(0, len(unseen) - LONGEST - 1, HELD_OUT).long()
    held_out = unseen[starts.unsqueeze(1) + torch.arange(LONGEST + 1)]
    torch.manual_seed(seed)
    model = ByteTransformer(WIDTH, LAYERS)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    curve = []
    for step, window in zip(range(1, STEPS + 1), windows(seen, seed), strict=False):
        for place, micro_batch in enumerate(window):
            (summed(model, micro_batch) * WAYS[way](window, place)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            curve.append({"step": step, **evaluated(model, held_out)})
    return curve


def main() -> None:
    """Train both ways with each seed, and write the curves and the differences at the end."""
    torch.set_num_threads(1)
    rows = [{"way": way, "seed": seed, "curve": trained(way, seed)} for seed in SEEDS for way in WAYS]
    last = {(row["way"], row["seed"]): row["curve"][-1] for row in rows}
    differences = {
        key: [last["mean of means", seed][key] - last["by targets", seed][key] for seed in SEEDS]
        for key in ("loss", "early", "late")
    }
    result = {
        "environment": environment(),
        "command": shlex.join(["python", "benchmarks/severity.py", *sys.argv[1:]]),
        "settings": {
            "lengths": LENGTHS,
            "pieces": PIECES,
            "micro_batches": MICRO_BATCHES,
            "steps": STEPS,
            "rate": RATE,
            "width": WIDTH,
            "layers": LAYERS,
            "seeds": SEEDS,
        },
        "rows": rows,
        "differences": {key: {"each": each, "mean": statistics.fmean(each)} for key, each in differences.items()},
    }
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
