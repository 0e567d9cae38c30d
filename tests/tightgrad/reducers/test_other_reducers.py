"""What linear, majority_vote, sparse_two_shot, hierarchical and gather do beyond the conformance suite."""

import pytest
import torch
from torch import Tensor

from support.ranks import run_ranks
from tightgrad.codecs import Cast, IntBlock, RandomK, Sign, Threshold, TopK
from tightgrad.collectives import ThreadedCollective, TorchCollective, run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec, Collective, ReduceContext, Reducer
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, Reduced
from tightgrad.reducers import Dense, Gather, Hierarchical, Linear, MajorityVote, SparseTwoShot, TwoShot
from tightgrad.reducers.hierarchical import owner_of
from tightgrad.reducers.sums import sum_over_ranks


def reduce(reducer: Reducer, codec: Codec | None, grads: Grads, collective: Collective) -> Reduced:
    return reducer.reduce(grads, codec, {}, ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock()))


def normal(numel: int, seed: int) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("numel", [0, 1, 2, 7, 100])
def test_sums_do_not_depend_on_where_an_element_lies(world_size: int, numel: int) -> None:
    def body(collective: ThreadedCollective) -> tuple[Tensor, Tensor]:
        flat = normal(numel, collective.rank)
        alone = torch.cat([sum_over_ranks(piece, collective) for piece in flat.split(1)]) if numel else flat
        return sum_over_ranks(flat, collective), alone

    results = run_threaded(world_size, body)
    for together, alone in results:
        assert torch.equal(together, alone)
        assert torch.equal(together, results[0][0])


def test_linear_delivers_the_sum_at_the_shared_indices() -> None:
    def body(collective: ThreadedCollective) -> Tensor:
        return reduce(Linear(), RandomK(0.1), {"w": normal(1_000, collective.rank)}, collective).total["w"]

    total = run_threaded(3, body)[0]
    kept = total != 0
    assert int(kept.sum()) == 100
    exact = sum(normal(1_000, rank) for rank in range(3))
    assert torch.allclose(total[kept], exact[kept], atol=1e-6)


def test_majority_and_tie() -> None:
    signs = [[1.0, 1.0], [1.0, -1.0], [-9.0, 0.0], [1.0, 0.0]]

    def body(collective: ThreadedCollective) -> Tensor:
        first, second = signs[collective.rank]
        grad = torch.tensor([first] * 8 + [second] * 8)
        return reduce(MajorityVote(), Sign(block_size=8), {"w": grad}, collective).total["w"]

    total = run_threaded(4, body)[0]
    assert total[:8].tolist() == [12.0] * 8  # three against one, however loud, at the sum of the scales
    assert total[8:].tolist() == [0.0] * 8


def test_a_denser_second_round_loses_less() -> None:
    def body(second: Codec | None) -> float:
        def one(collective: ThreadedCollective) -> Tensor:
            grads = {"w": normal(4_000, collective.rank)}
            return reduce(SparseTwoShot(second), TopK(0.05), grads, collective).total["w"]

        exact = sum(normal(4_000, rank) for rank in range(4))
        return float((run_threaded(4, one)[0] - exact).norm())

    assert body(TopK(0.2)) < body(None)
    with pytest.raises(ConfigError, match="fixed size"):
        SparseTwoShot(Threshold(1.0))


class Lying(ThreadedCollective):
    """Announces a size that no payload can have."""

    lie = 2**60

    def all_gather(self, tensor: Tensor) -> Tensor:
        if tensor.dtype is torch.int64 and self.rank == 1:
            tensor = torch.full_like(tensor, self.lie)
        return super().all_gather(tensor)


@pytest.mark.parametrize("lie", [2**60, -1, 4_000 + 17])
def test_an_impossible_size_is_refused_on_every_rank(lie: int) -> None:
    def body(collective: ThreadedCollective) -> str:
        collective.__class__ = type("Liar", (Lying,), {"lie": lie})
        context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        reduced = Gather().reduce({"w": normal(1_000, collective.rank)}, Threshold(0.5), {}, context)
        assert reduced.total["w"].shape == (1_000,)
        return context.failures[0]

    assert all("rank 1 announces" in text for text in run_threaded(3, body))


def test_sizes_cost_eight_bytes_a_tensor() -> None:
    def body(collective: ThreadedCollective) -> int:
        grads = {"w": normal(1_000, 1), "b": normal(10, 1)}
        reduce(Gather(), Threshold(100.0), grads, collective)
        return collective.traffic.nbytes

    assert run_threaded(2, body) == [16 + 2 * 8] * 2  # no entry is that large: two counts of zero


def test_dense_inside_a_node_compressed_between_nodes() -> None:
    names = ("a", "b", "c", "d", "e")

    def body(collective: ThreadedCollective) -> tuple[Reduced, dict[str, int]]:
        grads = {name: normal(999, 10 * collective.rank + index) for index, name in enumerate(names)}
        reduced = reduce(Hierarchical(2, inner=Gather()), IntBlock(8), grads, collective)
        return reduced, collective.traffic.by_operation

    results = run_threaded(4, body)
    exact = {n: sum(normal(999, 10 * rank + index) for rank in range(4)) for index, n in enumerate(names)}
    for reduced, _ in results:
        for name in names:
            assert torch.allclose(reduced.total[name], exact[name], atol=0.1)
            assert torch.equal(reduced.total[name], results[0][0].total[name])
    payload = 999 + 4 * 4
    for rank, (_, sent) in enumerate(results):
        assert sent.get("all_gather", 0) == payload * sum(owner_of(name, 2) == rank % 2 for name in names)


def test_one_node_is_dense() -> None:
    def body(collective: ThreadedCollective) -> Tensor:
        return reduce(Hierarchical(4), IntBlock(4), {"w": normal(99, collective.rank)}, collective).total["w"]

    assert torch.allclose(run_threaded(2, body)[0], normal(99, 0) + normal(99, 1))


def split_and_reduce() -> dict[str, object]:
    collective = TorchCollective()
    node = collective.split([[0, 1], [2, 3]])
    assert collective.split([[0, 1], [2, 3]]) is node
    total = node.all_reduce_(torch.tensor([float(collective.rank)]))
    grads = {"w": normal(500, collective.rank), "b": normal(5, collective.rank)}
    reduced = reduce(Hierarchical(2, inner=TwoShot()), IntBlock(8), grads, collective)
    dense = reduce(Dense(), None, grads, collective)
    nested = node.split([[0], [1]])
    return {
        "rank": node.rank,
        "total": float(total),
        "reduced": reduced.total["w"],
        "dense": dense.total["w"],
        "nested": nested.world_size,
        "counted": collective.traffic is node.traffic and collective.traffic.nbytes > 0,
    }


@pytest.mark.slow
def test_split_over_gloo() -> None:
    results = run_ranks(4, split_and_reduce)
    assert [result["rank"] for result in results] == [0, 1, 0, 1]
    assert [result["total"] for result in results] == [1.0, 1.0, 5.0, 5.0]
    for result in results:
        assert result["nested"] == 1
        assert result["counted"]
        assert torch.equal(result["reduced"], results[0]["reduced"])
        assert torch.allclose(result["reduced"], result["dense"], atol=0.1)


def test_float32_payloads_in_two_shot_are_the_plain_sum() -> None:
    def body(collective: ThreadedCollective) -> Tensor:
        return reduce(TwoShot(), Cast("float32"), {"w": normal(100, collective.rank)}, collective).total["w"]

    assert torch.equal(run_threaded(2, body)[0], normal(100, 0) + normal(100, 1))
