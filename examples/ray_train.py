"""Ray Train: two workers; one is killed in the middle, Ray starts both again, and the run goes on where it was.

`tg.save` and `tg.load` keep the model, the optimizer, the pipeline with its residuals and the random generators, so the
weights at the end are those of a run in which nobody was killed (`--calm`), to the last digit. Needs
`pip install 'ray[train]'`; the numbers are from Ray 2.60.

$ python examples/ray_train.py
began at step 12, ended at step 24 with loss 0.595
26431 bytes sent by rank 0 in the last step; sum of all weights -33.623642105249

$ python examples/ray_train.py --calm
began at step 0, ended at step 24 with loss 0.595
26431 bytes sent by rank 0 in the last step; sum of all weights -33.623642105249
"""

import argparse
import itertools
import os
import signal
import tempfile
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

import tightgrad as tg
from tightgrad_lab.cases.image import ImageCase

STEPS, KILLED_AFTER = 24, 12


def train(settings):
    """Run on each worker, from the beginning or from the last checkpoint."""
    folder, rank = Path(settings["folder"]), ray.train.get_context().get_world_rank()
    case = ImageCase()
    images, labels = case.batch(case.load()[0], torch.arange(rank, 3000, 2))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
    model = ray.train.torch.prepare_model(net)  # in DistributedDataParallel
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    four_bits = tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback())
    plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=2), clip=tg.clip.GlobalNorm(1.0), compress=four_bits)
    pipe = tg.attach(model, optimizer, plan)

    consumed = tg.load(folder / "checkpoints", model, optimizer, pipe, missing_ok=True)
    loader = list(zip(images.split(16), labels.split(16), strict=True))[: 2 * STEPS]
    for window in pipe.windows(itertools.islice(loader, consumed, None)):
        for inputs, targets in window:
            pipe.backward(nn.functional.cross_entropy(model(inputs), targets))
        record = pipe.step()
        tg.save(folder / "checkpoints", model, optimizer, pipe, keep=2)
        if settings["kills"] and rank == 1 and record.step + 1 == KILLED_AFTER and not (folder / "killed").exists():
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    weights = sum(float(parameter.detach().double().sum()) for parameter in net.parameters())
    return {"loss": record.loss, "weights": weights, "began": consumed // 2, "nbytes": record.wire_bytes}


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--calm", action="store_true", help="kill nobody")
    kills = not arguments.parse_args().calm
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:  # on a cluster: a folder that all nodes share
        trainer = ray.train.torch.TorchTrainer(
            train,
            train_loop_config={"folder": folder, "kills": kills},
            torch_config=ray.train.torch.TorchConfig(backend="gloo"),
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(storage_path=folder, failure_config=ray.train.FailureConfig(max_failures=1)),
        )
        found = trainer.fit().return_value  # of rank 0
    print(f"began at step {found['began']}, ended at step {STEPS} with loss {found['loss']:.3f}")
    print(f"{found['nbytes']} bytes sent by rank 0 in the last step; sum of all weights {found['weights']:.12f}")
