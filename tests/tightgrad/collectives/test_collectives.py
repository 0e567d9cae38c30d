"""Threads, processes and a single process: one meaning, one byte count."""

import threading

import pytest
import torch
import torch.distributed as dist

import tightgrad as tg
from support.ranks import run_ranks
from tightgrad.collectives import SingleCollective, TorchCollective, run_threaded
from tightgrad.collectives.in_pieces import PIECE_NBYTES


def exercise(collective):
    """Every operation, with awkward sizes; returns the results and the bytes counted after each."""
    rank, world_size = collective.rank, collective.world_size
    generator = torch.Generator().manual_seed(rank)
    floats = torch.randint(-50, 50, (7,), generator=generator).float()
    chunks = [torch.full((rank + 2 * other,), rank, dtype=torch.uint8) for other in range(world_size)]
    sizes = [source + 2 * rank for source in range(world_size)]
    results, counts = [], []
    for operation in (
        lambda: collective.all_reduce_(floats.clone()),
        lambda: collective.all_reduce_(floats.clone(), "max"),
        lambda: collective.all_reduce_(floats.clone(), "min"),
        lambda: collective.all_reduce_(torch.tensor([rank, 1], dtype=torch.int64)),
        lambda: collective.all_gather(floats.view(7, 1)),
        lambda: collective.all_gather(torch.empty(0, dtype=torch.uint8)),
        lambda: torch.cat(collective.all_to_all(chunks, sizes)),
        lambda: collective.broadcast_(floats.clone()),
        lambda: collective.broadcast_(floats.clone(), world_size - 1),
    ):
        results.append(operation())
        counts.append(collective.traffic.nbytes)
    return results, counts, dict(collective.traffic.by_operation)


def exercise_torch():
    return exercise(TorchCollective())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_threads_and_processes_agree(world_size):
    """Small integers, so that sums are exact in any order."""
    threads = run_threaded(world_size, exercise)
    for ours, theirs in zip(threads, run_ranks(world_size, exercise_torch), strict=True):
        assert all(map(torch.equal, ours[0], theirs[0]))
        assert ours[1:] == theirs[1:]


def exercise_large():
    """Messages that go in pieces between two ranks; a small one answers a large one."""
    collective = TorchCollective()
    numel = PIECE_NBYTES // 4 * 3 + 5
    flat = torch.arange(numel, dtype=torch.float32) + collective.rank
    gathered = collective.all_gather(flat.view(-1, 1)).view(collective.world_size, -1)
    sizes = [[(1 + sender) * 7 + receiver * numel for receiver in range(2)] for sender in range(2)]
    chunks = [flat.repeat(2)[:size] for size in sizes[collective.rank]]
    received = collective.all_to_all(chunks, [sizes[sender][collective.rank] for sender in range(2)])
    return gathered, received, dict(collective.traffic.by_operation)


def test_large_messages_of_two_ranks():
    numel = PIECE_NBYTES // 4 * 3 + 5
    for rank, (gathered, received, sent) in enumerate(run_ranks(2, exercise_large)):
        base = torch.arange(numel, dtype=torch.float32)
        assert torch.equal(gathered, torch.stack([base, base + 1]))
        for sender, chunk in enumerate(received):
            size = (1 + sender) * 7 + rank * numel
            assert torch.equal(chunk, (base + sender).repeat(2)[:size])
        other = (1 + rank) * 7 + (1 - rank) * numel
        assert sent == {"all_gather": 4 * numel, "all_to_all": 4 * other}


def test_one_process_sends_nothing():
    results, counts, _ = exercise(SingleCollective())
    (expected, expected_counts, _) = run_threaded(1, exercise)[0]
    assert all(map(torch.equal, results, expected))
    assert counts == expected_counts == [0] * len(counts)


def test_bytes_by_hand():
    """Four ranks: 7 floats are 28 bytes; a ring all-reduce sends 2 * 3 / 4 of them, an all-gather 3 times all."""
    _, counts, by_operation = run_threaded(4, exercise)[1]
    assert counts[:5] == [42, 84, 126, 126 + 24, 150 + 84]
    assert by_operation == {"all_reduce": 150, "all_gather": 84, "all_to_all": 1 + 5 + 7, "broadcast": 0}
    assert run_threaded(4, exercise)[0][2]["broadcast"] == 3 * 28


def begun(collective):
    """Two all-gathers under way while another operation runs."""
    mine = torch.arange(6, dtype=torch.float64).view(2, 3) + collective.rank
    receive, empty = collective.start_all_gather(mine), collective.start_all_gather(mine[:0])
    summed = collective.all_reduce_(torch.ones(1))
    return receive(), empty(), collective.all_gather(mine), summed, torch.tensor(collective.traffic.nbytes)


def all_gathers_begun(collective):
    """Two under way while another operation runs: what is found, beside what should be."""
    others = collective.world_size - 1
    mine = torch.arange(6, dtype=torch.float64).view(2, 3) + collective.rank
    receive, empty = collective.start_all_gather(mine), collective.start_all_gather(mine[:0])
    summed = collective.all_reduce_(torch.ones(1))
    received, nothing, gathered = receive(), empty(), collective.all_gather(mine)
    nbytes = others * 2 * 48 - (-8 * others // collective.world_size)
    return [
        (received, gathered),
        (nothing, torch.empty(collective.world_size, 0, 3, dtype=mine.dtype)),
        (summed, torch.tensor([float(collective.world_size)])),
        (torch.tensor(collective.traffic.nbytes), torch.tensor(nbytes)),
    ]


def on_torch(body):
    return body(TorchCollective())


@pytest.mark.parametrize("world_size", [1, 3])
def test_what_was_begun_goes_on_while_others_run(world_size):
    threads = run_threaded(world_size, all_gathers_begun)
    for ours, theirs in zip(threads, run_ranks(world_size, on_torch, all_gathers_begun), strict=True):
        for (found, wanted), (on_ranks, _) in zip(ours, theirs, strict=True):
            assert torch.equal(found, wanted)
            assert torch.equal(on_ranks, wanted)
    assert all(torch.equal(found, wanted) for found, wanted in all_gathers_begun(SingleCollective()))


def test_results_are_copies():
    def body(collective):
        mine = torch.full((3,), float(collective.rank))
        gathered = collective.all_gather(mine)
        chunks = collective.all_to_all([mine] * collective.world_size, [3] * collective.world_size)
        mine.fill_(9.0)
        collective.all_reduce_(torch.zeros(1))
        assert gathered[:, 0].tolist() == [0.0, 1.0]
        assert [float(chunk[0]) for chunk in chunks] == [0.0, 1.0]

    run_threaded(2, body)


def test_all_ranks_get_the_same_bits():
    def body(collective):
        return collective.all_reduce_(torch.randn(100, generator=torch.Generator().manual_seed(collective.rank)))

    first, *others = run_threaded(4, body)
    assert all(torch.equal(first, other) for other in others)


def test_the_first_error_is_raised_and_nobody_waits():
    with pytest.raises(KeyError, match="rank 2"):
        run_threaded(4, lambda c: {}["rank 2"] if c.rank == 2 else c.all_reduce_(torch.ones(1)))
    assert not any(thread.name.startswith("rank-") for thread in threading.enumerate())


def test_a_wrong_size_is_an_error():
    with pytest.raises(ValueError, match=r"expected chunks of \[5, 5\] elements, got \[3, 3\]"):
        run_threaded(2, lambda c: c.all_to_all([torch.zeros(3)] * 2, [5, 5]))


def test_torch_needs_a_process_group():
    assert not dist.is_initialized()
    with pytest.raises(tg.UsageError, match=r"not initialised; call .*init_process_group"):
        TorchCollective()
