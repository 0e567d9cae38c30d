"""A4: one rank of two runs out of memory."""

import time

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from field.gradients import Recorder, exact_gradient, linear_model, mean_square, regression_batches, relative_error
from support.ranks import run_ranks

pytest.importorskip("accelerate")  # here, so that every rank has it before the clock runs
from accelerate.utils import find_executable_batch_size

RANKS = 2
TIMEOUT_SECONDS = 4.0  # of the peer's collectives
SAMPLES = 16
FITS = 10  # samples, on rank 1


def batch_of(rank, size=SAMPLES):
    return regression_batches(1, seed=rank, size=size)[0]


def check_memory(rank, batch):
    if rank == 1 and len(batch[0]) > FITS:
        raise torch.OutOfMemoryError("CUDA out of memory. (injected)")


def find_batch_size():
    """Accelerate's decorator around a training loop, as in its documentation, on ranks of unequal memory."""
    rank = dist.get_rank()
    tried = []

    @find_executable_batch_size(starting_batch_size=SAMPLES)
    def train(batch_size):
        tried.append(batch_size)
        model = DistributedDataParallel(linear_model())
        for step in range(3):
            batch = batch_of(rank, batch_size)
            if step > 0:
                check_memory(rank, batch)
            mean_square(model, batch).backward()

    start = time.perf_counter()
    try:
        train()
        outcome = "done"
    except Exception as error:
        outcome = type(error).__name__
    return tried, outcome, time.perf_counter() - start


def split_batch_size():
    rank = dist.get_rank()
    model = DistributedDataParallel(linear_model())
    optimizer = Recorder(model)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(1, on_oom="split")))

    def loss_of(batch):
        check_memory(rank, batch)
        return mean_square(model, batch)

    start = time.perf_counter()
    records = [pipe.run(window, loss_of) for window in pipe.windows([batch_of(rank)])]
    return optimizer.gradients[0], [record.retries for record in records], time.perf_counter() - start


def test_a4_one_rank_out_of_memory(field_row):
    peer = run_ranks(RANKS, find_batch_size, timeout_seconds=TIMEOUT_SECONDS)
    ours = run_ranks(RANKS, split_batch_size)
    exact = exact_gradient(linear_model(), [batch_of(rank) for rank in range(RANKS)])
    for gradient, retries, _ in ours:
        assert relative_error(gradient, exact) < 1e-6
        assert torch.equal(gradient, ours[0][0])
        assert retries == [1]
    (waiting, outcome, seconds), (restarting, _, _) = peer
    field_row(
        "A4 one rank of two out of memory",
        "accelerate",
        f"hangs, rank 0: {outcome} when the collective times out, {seconds:.1f} s",
        f"same gradient, {ours[0][2]:.2f} s",
        peer_is_wrong=waiting != restarting and outcome != "done" and seconds > 0.9 * TIMEOUT_SECONDS,
    )
