"""What ranks tell each other of what one of them alone has seen."""

import pytest

import tightgrad as tg
from tightgrad.core.collective import failed_ranks, gathered, largest_over_ranks, raise_on_every_rank, told


def raised(error, collective):
    try:
        raise_on_every_rank(error, lambda rank: tg.UsageError(f"rank {rank} failed"), collective)
    except Exception as found:
        return type(found), str(found)
    return None


@pytest.mark.parametrize("failing", [(), (1,), (1, 2), (0, 1, 2)])
def test_a_rank_that_fails_raises_its_own_error_and_the_others_name_the_first(failing):
    def run(collective):
        error = ValueError(f"of {collective.rank}") if collective.rank in failing else None
        return failed_ranks(error, collective), raised(error, collective)

    for rank, (failed, found) in enumerate(tg.collectives.run_threaded(3, run)):
        assert failed == list(failing)
        elsewhere = (tg.UsageError, f"rank {failing[0]} failed") if failing else None
        assert found == ((ValueError, f"of {rank}") if rank in failing else elsewhere)


def test_numbers_and_reasons_of_all_ranks():
    def run(collective):
        rank = collective.rank
        return (
            largest_over_ranks([rank == 1, False, 200 + rank], collective),
            gathered([rank, -(2**40)], collective),
            told(f"ValueError: {rank}" if rank else "", collective),
        )

    expected = ([1, 0, 202], [[rank, -(2**40)] for rank in range(3)], "rank 1: ValueError: 1; rank 2: ValueError: 2")
    assert tg.collectives.run_threaded(3, run) == [expected] * 3
