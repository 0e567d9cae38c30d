"""What every pair of codec and reducer must do on 1 to 4 ranks."""

import pytest
import torch

import tightgrad as tg
from conformance.cases import CODECS, REDUCERS, WireBytes
from conformance.wire_bytes import dense_nbytes
from tightgrad.codecs import Cast
from tightgrad.collectives import ThreadedCollective, run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import IncompatiblePlanError
from tightgrad.core.protocols import Codec, ReduceContext, Reducer
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, Reduced

WORLD_SIZES = (1, 2, 3, 4)
SHAPES = {"conv": (4, 3, 3, 3), "scalar": (), "matrix": (37, 29), "empty": (0, 5), "bias": (11,), "long": (2_000,)}
EPS = 2.0**-24

# Their products, or differences of sums, round by 2^-24 of the largest numbers of a tensor, not of each element.
NORMWISE = ("sparse_two_shot", "powersgd", "hierarchical")


def named(value: object) -> str:
    return getattr(value, "__name__", repr(value)[:70])


PAIRS = [
    (reducer, codec, wire_bytes)
    for reducer, wire_bytes in REDUCERS
    for codec in (None, *CODECS)
    if reducer.refuses(codec) is None
]
every_pair = pytest.mark.parametrize(("reducer", "codec", "wire_bytes"), PAIRS, ids=named)
every_world_size = pytest.mark.parametrize("world_size", WORLD_SIZES)


def gradients(rank: int) -> Grads:
    generator = torch.Generator().manual_seed(50 + rank)
    grads = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    grads["conv"] = grads["conv"].to(memory_format=torch.channels_last)  # strided, as convolutions have it
    grads["matrix"] = grads["matrix"].t().contiguous().t()
    return grads


def reduce(reducer: Reducer, codec: Codec | None, grads: Grads, collective: ThreadedCollective) -> Reduced:
    context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
    with torch.no_grad():
        return reducer.reduce(grads, codec, {}, context)


def reduce_on_all(
    reducer: Reducer, codec: Codec | None, world_size: int, names: tuple[str, ...] = tuple(SHAPES)
) -> list[tuple[Reduced, int]]:
    def body(collective: ThreadedCollective) -> tuple[Reduced, int]:
        grads = gradients(collective.rank)
        reduced = reduce(reducer, codec, {name: grads[name] for name in names}, collective)
        return reduced, collective.traffic.nbytes

    return run_threaded(world_size, body)


@every_world_size
@every_pair
def test_ranks_agree_and_transmitted_adds_up(
    reducer: Reducer, codec: Codec | None, wire_bytes: WireBytes, world_size: int
) -> None:
    results = [reduced for reduced, _ in reduce_on_all(reducer, codec, world_size)]
    for name, shape in SHAPES.items():
        total = results[0].total[name]
        assert total.shape == shape
        assert total.dtype == torch.float32
        for reduced in results:
            assert torch.equal(reduced.total[name], total), f"{name} differs between ranks"
            assert reduced.transmitted[name].shape == shape
        sent = [reduced.transmitted[name].double() for reduced in results]
        # Each of the W sums, and the owner's correction, rounds once: 2^-24 of the numbers added.
        size = torch.stack([s.abs() for s in sent]).sum(dim=0) + total.double().abs()
        if reducer.card.id in NORMWISE and size.numel():
            size = size.amax().expand_as(size)
        assert bool(((sum(sent) - total.double()).abs() <= 2 * (world_size + 1) * EPS * size).all()), name


@every_pair
def test_the_total_is_near_the_sum(reducer: Reducer, codec: Codec | None, wire_bytes: WireBytes) -> None:
    """Catches a mean for a sum, a lost rank, a permuted chunk: anything that is not the sum itself."""
    world_size = 3
    total = reduce_on_all(reducer, codec, world_size)[0][0].total
    everyone = [gradients(rank) for rank in range(world_size)]
    delta = codec.contraction(2_000) if codec is not None else 1.0
    for name in ("conv", "matrix", "long"):
        exact = sum(grads[name].double() for grads in everyone)
        error = float((total[name] - exact).norm() / exact.norm())
        cosine = float((total[name] * exact).sum() / (total[name].double().norm() * exact.norm()))
        assert cosine > 0.1
        if reducer.card.id == "dense":
            assert error < world_size * EPS
        elif codec is not None and delta > 0.99 and reducer.card.id not in ("majority_vote", "powersgd"):
            # sqrt(1 - delta) of each rank's norm, twice for two rounds; norms of three ranks over that of their sum.
            assert error < 2 * 3 * (1 - delta) ** 0.5 + world_size * EPS


@every_world_size
@every_pair
def test_inputs_are_left_alone(reducer: Reducer, codec: Codec | None, wire_bytes: WireBytes, world_size: int) -> None:
    def body(collective: ThreadedCollective) -> None:
        grads = gradients(collective.rank)
        reduced = reduce(reducer, codec, grads, collective)
        for name, before in gradients(collective.rank).items():
            assert torch.equal(grads[name], before), name
            reduced.total[name].add_(1.0)
            assert torch.equal(grads[name], before), f"the total of {name} shares memory with the input"

    run_threaded(world_size, body)


@every_world_size
@every_pair
def test_independent_of_grouping(reducer: Reducer, codec: Codec | None, wire_bytes: WireBytes, world_size: int) -> None:
    """The threaded ranks add in rank order, so this holds for dense too; a real ring may differ for W > 2."""
    together = [reduced for reduced, _ in reduce_on_all(reducer, codec, world_size)]
    for name in SHAPES:
        alone = [reduced for reduced, _ in reduce_on_all(reducer, codec, world_size, (name,))]
        for one, many in zip(alone, together, strict=True):
            assert torch.equal(one.total[name], many.total[name]), name
            assert torch.equal(one.transmitted[name], many.transmitted[name]), name


@every_world_size
@every_pair
def test_traffic_is_what_the_documentation_says(
    reducer: Reducer, codec: Codec | None, wire_bytes: WireBytes, world_size: int
) -> None:
    dense = dense_nbytes(SHAPES, None, world_size, 0)
    for rank, (_, counted) in enumerate(reduce_on_all(reducer, codec, world_size)):
        if codec is None or codec.fixed_size:
            assert counted == wire_bytes(SHAPES, codec, world_size, rank)
        assert (counted > 0) == (world_size > 1)
        if codec is not None and reducer.card.id == "two_shot" and codec != Cast("float32"):
            assert counted <= dense or world_size == 1, "compression sends more than it saves"


@every_pair
def test_nothing_to_reduce(reducer: Reducer, codec: Codec | None, wire_bytes: WireBytes) -> None:
    for names in ((), ("empty",)):
        for reduced, counted in reduce_on_all(reducer, codec, 2, names):
            assert list(reduced.total) == list(reduced.transmitted) == list(names)
            assert counted == 0


@pytest.mark.parametrize(
    ("reducer", "codec"),
    # Elsewhere an owner books the error of a second encoding, also if its own part was zero.
    [
        (reducer, codec)
        for reducer, codec, _ in PAIRS
        if reducer.card.id in ("dense", "gather", "linear") or (reducer.card.id == "powersgd" and codec is None)
    ],
    ids=lambda value: repr(value)[:70],
)
def test_a_rank_of_zeros_transmits_nothing(reducer: Reducer, codec: Codec | None) -> None:
    def body(collective: ThreadedCollective) -> Grads:
        grads = gradients(0)
        if collective.rank:
            grads = {name: torch.zeros_like(grad) for name, grad in grads.items()}
        return reduce(reducer, codec, grads, collective).transmitted

    for transmitted in run_threaded(3, body)[1:]:
        assert not any(bool(tensor.any()) for tensor in transmitted.values())


@pytest.mark.parametrize("codec", [None, *CODECS], ids=repr)
@pytest.mark.parametrize("reducer", [reducer for reducer, _ in REDUCERS], ids=repr)
def test_a_pair_works_or_is_refused_with_a_reason(reducer: Reducer, codec: Codec | None) -> None:
    reason = reducer.refuses(codec)
    if reason is None:
        assert tg.Compress(codec, reducer).reducer == reducer
        return
    with pytest.raises(IncompatiblePlanError) as error:
        tg.Compress(codec, reducer)
    assert reason in str(error.value)
    assert any(other.card.id in reason for other, _ in REDUCERS if other != reducer), "the reason names no way out"


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_the_codecs_default_reducer_takes_it(codec: Codec) -> None:
    compress = tg.Compress(codec)
    assert compress.reducer is not None
    assert compress.reducer.card.id == codec.reducer
