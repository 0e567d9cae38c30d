"""A training run that something happens to. Under torchrun:

    under_fire.py FOLDER STEPS [--kill-in STEP] [--wait-in STEP] [--timeout SECONDS]

Two micro-batches a step, clipped and compressed with feedback; a checkpoint after every second step and at SIGTERM. At
its start it takes up the newest one. Rank 0 prints a digest of the weights at the end.
"""

import argparse
import hashlib
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg

SAVE_EVERY = 2
PLAN = tg.Plan(
    accumulate=tg.Accumulate(micro_batches=2),
    compress=tg.Compress(tg.codecs.TopK(density=0.1), feedback=tg.ErrorFeedback()),
    clip=tg.clip.GlobalNorm(0.5),
)


def batches(rank):
    generator = torch.Generator().manual_seed(rank)
    while True:
        yield torch.randn(4, 16, generator=generator), torch.randn(4, 1, generator=generator)


def weights_path(folder, step):
    return folder / f"weights-{step}.pt"


def save(pipe, model, optimizer, folder):
    """The weights first: they count only once the pipeline's own checkpoint of that step does."""
    if dist.get_rank() == 0:
        path = weights_path(folder, pipe.state.step)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    dist.barrier()
    pipe.save(folder)


def load(pipe, model, optimizer, folder):
    consumed = pipe.load(folder)
    saved = torch.load(weights_path(folder, pipe.state.step), weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return consumed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--kill-in", type=int, default=-1)
    parser.add_argument("--wait-in", type=int, default=-1)
    parser.add_argument("--timeout", type=float, default=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=options.timeout))
    rank = dist.get_rank()
    terminated = []
    signal.signal(signal.SIGTERM, lambda *_: terminated.append(True))
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pipe = tg.attach(model, optimizer, PLAN)
    loader = batches(rank)
    if (options.folder / "latest").exists():
        for _ in range(load(pipe, model, optimizer, options.folder)):
            next(loader)
    if rank == 0:
        print(f"[begins at step {pipe.state.step}]", flush=True)
    first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    for window in pipe.windows(loader):
        for number, (inputs, targets) in enumerate(window):
            pipe.backward((model(inputs) - targets).square().mean())
            if number == 0 and pipe.state.step == options.kill_in and rank == 1 and first_life:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 0 and pipe.state.step == options.wait_in and first_life:
                (options.folder / f"waits-{rank}").touch()
                while not terminated and not (options.folder / "go-on").exists():
                    time.sleep(0.05)
        pipe.step()
        told = torch.tensor([float(bool(terminated))])
        stops = bool(pipe.adapter.collective.all_reduce_(told, "max"))
        if pipe.state.step % SAVE_EVERY == 0 or stops:
            save(pipe, model, optimizer, options.folder)
        if stops or pipe.state.step == options.steps:
            break
    if rank == 0:
        content = b"".join(value.numpy().tobytes() for value in model.module.state_dict().values())
        print(f"[step {pipe.state.step} digest {hashlib.sha256(content).hexdigest()}]", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
