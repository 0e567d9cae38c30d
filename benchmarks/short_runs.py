"""What a density of 1 % costs in a run of a few dozen steps, and what a density warm-up changes.

    python benchmarks/short_runs.py benchmarks/results/2026-11-30-short-runs.json

Two ranks in one process train the small byte-level GPT of the book on lines of Shakespeare, dense and with the largest
1 % of each gradient with error feedback. A residual of top-k is sent after about 1 / density steps, so a run of 96
steps ends before it has settled.
"""

import json
import math
import sys
from pathlib import Path
from statistics import fmean

import torch

import tightgrad as tg
from tightgrad_lab.common import byte_model, verse
from tightgrad_lab.environment import environment

RANKS, BATCH, STEPS, LAST, DENSITY = 2, 8, 96, 8, 0.01
SEEDS = (0, 1, 2)
FEEDBACK = tg.ErrorFeedback()
CODECS = {
    "dense": None,
    "topk 1 %": tg.codecs.TopK(DENSITY),
    "topk 1 %, warm-up over 48 steps": tg.codecs.DensityWarmup(tg.codecs.TopK(DENSITY), start=0.25, steps=STEPS // 2),
    "topk 10 %": tg.codecs.TopK(10 * DENSITY),
}
OPTIMIZERS = {"AdamW 1e-3": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)}


def train(models, make, codec, seed):
    """Return the loss of each step, over all ranks, and the bytes that a rank has sent."""
    compress = None if codec is None else tg.Compress(codec, feedback=FEEDBACK)
    plan = tg.Plan(compress=compress, clip=tg.clip.GlobalNorm(1.0))

    def on_rank(collective):
        model = models[collective.rank]
        pipe = tg.attach(model, make(model.parameters()), plan, weight=verse.weight, collective=collective)
        generator = torch.Generator().manual_seed(1000 * seed + collective.rank)
        records = []
        for window in pipe.windows(verse.batch(BATCH, generator) for _ in range(STEPS)):
            for pieces in window:
                pipe.backward(verse.loss(model, pieces))
            records.append(pipe.step())
        return [record.loss for record in records], sum(record.wire_bytes for record in records)

    by_rank = tg.collectives.run_threaded(RANKS, on_rank, timeout_seconds=600)
    return [fmean(losses) for losses in zip(*(losses for losses, _ in by_rank), strict=True)], by_rank[0][1]


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for optimizer, make in OPTIMIZERS.items():
        for seed in SEEDS:
            dense = math.nan
            for name, codec in CODECS.items():
                models = []
                for _ in range(RANKS):
                    torch.manual_seed(seed)
                    models.append(byte_model.ByteTransformer())
                losses, nbytes = train(models, make, codec, seed)
                final = fmean(losses[-LAST:])
                dense = final if codec is None else dense
                row = {"optimizer": optimizer, "codec": name, "seed": seed, "first_loss": losses[0]}
                rows.append(row | {"final_loss": final, "ratio_to_dense": final / dense, "wire_bytes": nbytes})
                print(rows[-1], flush=True)
    settings = {
        "ranks": RANKS,
        "batch": BATCH,
        "steps": STEPS,
        "final_loss_is_mean_of_last": LAST,
        "seeds": list(SEEDS),
    }
    result = {"environment": environment(), "settings": settings, "rows": rows}
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
