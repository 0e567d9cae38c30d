"""Ranks that are about to do different things hear of it before they do."""

import pytest

import tightgrad as tg
from tightgrad.collectives import run_threaded
from tightgrad.sync.same_round import Notice, Round, agree


def errors(rounds, names):
    def body(collective):
        with pytest.raises(tg.RankMismatchError) as error:
            agree(rounds[collective.rank], names[collective.rank], Notice.NOTHING, collective)
        return str(error.value)

    return run_threaded(len(rounds), body)


def test_every_rank_hears_who_is_where():
    messages = errors([Round.BUCKET, Round.END, Round.ABANDON, Round.BUCKET], [("a",)] * 4)
    assert len(set(messages)) == 1
    assert "rank 0, 3 has more gradients to reduce; rank 1 is at the end" in messages[0]
    assert "rank 2 has dropped the step after an error of its own" in messages[0]


def test_every_rank_hears_of_different_buckets():
    for rank, message in enumerate(errors([Round.BUCKET] * 2, [("a", "b"), ("a",)])):
        assert f"here, on rank {rank}, those of 'a'" in message
        assert "same arguments on every rank" in message


def test_what_one_rank_has_seen_all_know():
    def body(collective):
        notice = (
            Notice.NONFINITE if collective.rank == 1 else Notice.MISSING if collective.rank == 2 else Notice.NOTHING
        )
        return agree(Round.BUCKET, ("a",), notice, collective)

    assert set(run_threaded(3, body)) == {Notice.NONFINITE | Notice.MISSING}
