"""How a tensor is cut for its owners, and that the owner books the second rounding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tightgrad.codecs import IntBlock
from tightgrad.collectives import run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.reducers import TwoShot
from tightgrad.reducers.two_shot import chunk_numels


@given(st.integers(0, 10**6), st.integers(1, 64), st.integers(1, 512))
def test_chunks_are_whole_blocks_and_even(numel, world_size, granularity):
    sizes = chunk_numels(numel, world_size, granularity)
    assert len(sizes) == world_size
    assert sum(sizes) == numel
    assert min(sizes) >= 0
    edges = [sum(sizes[:rank]) for rank in range(world_size)]
    assert all(edge % granularity == 0 or edge == numel for edge in edges)
    assert max(sizes) - min(sizes) < 2 * granularity


def test_the_owner_books_the_error_of_the_second_encoding():
    """Both ranks send exactly representable numbers, so the only error is that of the encoded sum."""
    codec = IntBlock(bits=8, block_size=8)
    values = torch.tensor([[127.0, 1.0, 0, 0, 0, 0, 0, 0], [12_700.0, 100.0, 0, 0, 0, 0, 0, 0]])

    def body(collective):
        context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        return TwoShot().reduce({"x": values[collective.rank]}, codec, {}, context)

    first, second = run_threaded(2, body)
    scale = 12_827.0 / 127
    torch.testing.assert_close(first.total["x"][:2], torch.tensor([127 * scale, scale]))
    # One block has one owner: the last rank, since chunk edges are rounded down. Rank 0 sent what it had.
    assert torch.equal(first.transmitted["x"], values[0])
    torch.testing.assert_close(second.transmitted["x"], first.total["x"] - values[0])
