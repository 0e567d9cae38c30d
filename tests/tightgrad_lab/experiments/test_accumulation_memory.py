"""Every cut is the same training; memory, traffic and time are measured."""

from dataclasses import replace

import pytest
import torch

from support.row_types import wrong
from tightgrad.collectives.traffic import all_reduce_nbytes
from tightgrad_lab.common import byte_model
from tightgrad_lab.experiments.accumulation_memory import train
from tightgrad_lab.experiments.accumulation_memory.experiment import EXPERIMENT, Settings
from tightgrad_lab.experiments.accumulation_memory.train import Work
from tightgrad_lab.schema.accumulation import AccumulationMemoryFigure, AccumulationMemoryRow

WORK = Work("single", micro_batch=2, effective_batch=8, width=64, layers=1)
CONTROL_NBYTES = 256
"""More than the counts and weights that ranks agree on in a step."""


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_ranks_share_the_pieces_of_one_process() -> None:
    pieces = byte_model.batch(8, torch.Generator().manual_seed(0))
    parts = []
    for rank in range(2):
        batches = train.micro_batches(WORK, rank, 2)
        parts += [next(batches) for _ in range(WORK.micro_batches(2))]
    torch.testing.assert_close(torch.cat(parts), pieces, rtol=0, atol=0)


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="an effective batch of 8 is no multiple of 6"):
        replace(WORK, micro_batch=3).micro_batches(2)


def test_a_smaller_micro_batch_takes_less_memory_and_no_less_than_what_is_fixed(one_thread: None) -> None:
    works = [replace(WORK, micro_batch=size) for size in (1, 2, 8)]
    peaks = [train.memory_of(work) for work in works]
    assert train.fixed_nbytes(WORK) < peaks[0] < peaks[1] < peaks[2]


@pytest.mark.slow
def test_the_wrappers_are_the_same_training_and_differ_in_cost() -> None:
    settings = Settings(8, (2, 8), compared=2, width=64, layers=1, seeds=1, rounds=2)
    measured = EXPERIMENT.run(settings, lambda share, text: None)
    assert wrong(measured.figure, AccumulationMemoryFigure, "figure") == []
    assert [at for row in measured.table for at in wrong(row, AccumulationMemoryRow, "row")] == []
    rows = {row["wrapper"]: row for row in measured.table}
    assert list(rows) == list(train.WRAPPERS)
    assert [row["micro_batches"] for row in rows.values()] == [4, 2, 2, 2]
    assert all(row["weights_difference"] < 1e-3 for row in rows.values())  # a step of AdamW is 1e-3
    assert rows["single"]["wire_bytes"] == 0
    nbytes = 4 * measured.figure["num_parameters"]
    assert 0 <= rows["ddp"]["wire_bytes"] - all_reduce_nbytes(nbytes, 2) < CONTROL_NBYTES
    assert rows["ddp"]["wire_bytes"] < rows["fsdp2 last"]["wire_bytes"] < rows["fsdp2 every"]["wire_bytes"]
    assert max(rows["fsdp2 every"]["peak_memory_bytes"]) < min(rows["fsdp2 last"]["peak_memory_bytes"])
    first, last = measured.figure["points"]
    assert (first["micro_batch"], last["micro_batch"]) == (2, 8)
    assert max(first["peak_memory_bytes"]) < min(last["peak_memory_bytes"])
