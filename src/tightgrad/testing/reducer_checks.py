"""What every pair of codec and reducer must do on 1 to 4 ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import torch

import tightgrad as tg
from tightgrad.codecs import Cast
from tightgrad.collectives import ThreadedCollective, run_threaded
from tightgrad.core.protocols import Codec, Reducer
from tightgrad.core.types import Grads, Reduced
from tightgrad.testing.checks import Checks, OfLastSubject, context_of

Shapes = dict[str, tuple[int, ...]]
WireBytes = Callable[[Shapes, Codec | None, int, int], int]

REDUCER_CHECKS = Checks()
SHAPES: Shapes = {
    "conv": (4, 3, 3, 3),
    "scalar": (),
    "matrix": (37, 29),
    "empty": (0, 5),
    "bias": (11,),
    "long": (2_000,),
}
EPS = 2.0**-24
_REDUCED = OfLastSubject()
WORLD_SIZES: Mapping[str, int] = {f"{size} ranks": size for size in (1, 2, 3, 4)}


@dataclass(frozen=True)
class ReduceCase:
    """Says what a reducer promises beside the sum.

    Args:
        reducer: canonical settings.
        wire_bytes: what leaves rank `rank`, from (shapes, codec, world_size, rank), written from the reducer's
            documentation and not from its code; None does not check it.
        rounding: what transmitted parts and total may differ by: 2^-24 of each "element", or, where products or
            differences of sums are taken, of the largest number of its "tensor".
        nearness: how near the total is to the exact sum: "exact", to float32; "codec", to what the codec's contraction
            says; None only points the same way.
        zeros_send_nothing: whether a rank whose gradients are all 0 transmits nothing, with this codec.
        never_above_dense: whether it never sends more than an uncompressed all-reduce.
    """

    reducer: Reducer
    wire_bytes: WireBytes | None = None
    rounding: str = "tensor"
    nearness: str | None = "codec"
    zeros_send_nothing: Callable[[Codec | None], bool] = lambda codec: False
    never_above_dense: bool = False


@dataclass(frozen=True)
class Pair:
    """A reducer's case and a codec that it does not refuse."""

    case: ReduceCase
    codec: Codec | None

    def __repr__(self) -> str:
        return f"{self.case.reducer!r:.70}-{self.codec!r:.70}"


def dense_nbytes(world_size: int) -> int:
    """Return what a ring all-reduce sends: 2 (W - 1) / W of the float32 numbers."""
    return -(-2 * (world_size - 1) * 4 * sum(map(prod, SHAPES.values())) // world_size)


def gradients(rank: int) -> Grads:
    """Draw a rank's gradients, some of them strided, as convolutions have them."""
    generator = torch.Generator().manual_seed(50 + rank)
    grads = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    grads["conv"] = grads["conv"].to(memory_format=torch.channels_last)
    grads["matrix"] = grads["matrix"].t().contiguous().t()
    return grads


def reduce(pair: Pair, grads: Grads, collective: ThreadedCollective) -> Reduced:
    """Reduce once, with nothing remembered."""
    with torch.no_grad():
        return pair.case.reducer.reduce(grads, pair.codec, {}, context_of(collective))


def reduce_on_all(
    pair: Pair, world_size: int, names: tuple[str, ...] = tuple(SHAPES)
) -> list[tuple[Grads, Reduced, int]]:
    """Reduce on so many ranks, once for all checks of a pair; return what each gave and got, and the bytes it sent."""

    def body(collective: ThreadedCollective) -> tuple[Grads, Reduced, int]:
        drawn = gradients(collective.rank)
        grads = {name: drawn[name] for name in names}
        return grads, reduce(pair, grads, collective), collective.traffic.nbytes

    found: list[tuple[Grads, Reduced, int]] = _REDUCED.get(
        pair, (world_size, names), lambda: run_threaded(world_size, body)
    )
    return found


@REDUCER_CHECKS.add(variants=WORLD_SIZES)
def check_ranks_agree_and_transmitted_adds_up(pair: Pair, world_size: int) -> None:
    """Check that all ranks get the same total to the bit, and that it is the sum of what they say they transmitted."""
    results = [reduced for _, reduced, _ in reduce_on_all(pair, world_size)]
    for name, shape in SHAPES.items():
        total = results[0].total[name]
        assert (total.shape, total.dtype) == (shape, torch.float32), (
            f"the total of {name} is {total.dtype} of shape {tuple(total.shape)}, expected float32 of shape {shape}"
        )
        for reduced in results:
            assert torch.equal(reduced.total[name], total), f"the total of {name} differs between ranks"
            found = tuple(reduced.transmitted[name].shape)
            assert found == shape, f"what was transmitted of {name} has shape {found}, expected {shape}"
        sent = torch.stack([reduced.transmitted[name].double() for reduced in results])
        # Each of the W sums, and the owner's correction, rounds once: 2^-24 of the numbers added.
        size = sent.abs().sum(dim=0) + total.double().abs()
        if pair.case.rounding == "tensor" and size.numel():
            size = size.amax().expand_as(size)
        error = (sent.sum(dim=0) - total.double()).abs()
        assert bool((error <= 2 * (world_size + 1) * EPS * size).all()), (
            f"what the ranks transmitted of {name} does not add up to its total: the difference is "
            f"{float(error.max()):.3g}; error feedback would lose it"
        )


@REDUCER_CHECKS.add()
def check_the_total_is_near_the_sum(pair: Pair) -> None:
    """Check that the total is not a mean, lacks no rank, and has no chunk in another place."""
    world_size = 3
    total = reduce_on_all(pair, world_size)[0][1].total
    everyone = [gradients(rank) for rank in range(world_size)]
    delta = pair.codec.contraction(2_000) if pair.codec is not None else 1.0
    for name in ("conv", "matrix", "long"):
        exact = torch.stack([grads[name].double() for grads in everyone]).sum(dim=0)
        error = float((total[name] - exact).norm() / exact.norm())
        cosine = float((total[name] * exact).sum() / (total[name].double().norm() * exact.norm()))
        assert cosine > 0.1, f"the total of {name} points elsewhere than the sum: the cosine is {cosine:.3g}"
        if pair.case.nearness == "exact":
            assert error < world_size * EPS, f"the total of {name} is off by {error:.3g} of the sum's norm"
        elif pair.case.nearness == "codec" and pair.codec is not None and delta > 0.99:
            # sqrt(1 - delta) of each rank's norm, twice for two rounds; norms of three ranks over that of their sum.
            bound = 2 * 3 * (1 - delta) ** 0.5 + world_size * EPS
            assert error < bound, f"the total of {name} is off by {error:.3g} of the sum's norm, expected {bound:.3g}"


@REDUCER_CHECKS.add(variants=WORLD_SIZES)
def check_inputs_are_left_alone(pair: Pair, world_size: int) -> None:
    """Check that gradients are neither written nor handed back as the total."""
    for rank, (grads, reduced, _) in enumerate(reduce_on_all(pair, world_size)):
        for name, before in gradients(rank).items():
            assert torch.equal(grads[name], before), f"reduce() wrote into the gradient of {name}"
            total = reduced.total[name].clone()
            reduced.total[name].add_(1.0)
            is_shared = not torch.equal(grads[name], before)
            reduced.total[name].copy_(total)  # other checks look at it
            assert not is_shared, f"the total of {name} shares memory with the input"


@REDUCER_CHECKS.add(variants=WORLD_SIZES)
def check_independent_of_grouping(pair: Pair, world_size: int) -> None:
    """Check that a gradient is reduced alike alone and among others.

    The threaded ranks add in rank order, so this holds for dense too; a real ring may differ for W > 2.
    """
    together = [reduced for _, reduced, _ in reduce_on_all(pair, world_size)]
    for name in SHAPES:
        alone = [reduced for _, reduced, _ in reduce_on_all(pair, world_size, (name,))]
        for one, many in zip(alone, together, strict=True):
            assert torch.equal(one.total[name], many.total[name]), f"{name} alone has another total than among others"
            assert torch.equal(one.transmitted[name], many.transmitted[name]), name


@REDUCER_CHECKS.add(variants=WORLD_SIZES)
def check_traffic_is_what_the_documentation_says(pair: Pair, world_size: int) -> None:
    """Check that every byte is counted, and none is sent without need."""
    for rank, (_, _, counted) in enumerate(reduce_on_all(pair, world_size)):
        if pair.case.wire_bytes is not None and (pair.codec is None or pair.codec.fixed_size):
            expected = pair.case.wire_bytes(SHAPES, pair.codec, world_size, rank)
            assert counted == expected, (
                f"rank {rank} of {world_size} has sent {counted} bytes, and wire_bytes of the case says {expected}"
            )
        assert (counted > 0) == (world_size > 1), f"{counted} bytes were counted on {world_size} ranks"
        if pair.case.never_above_dense and pair.codec != Cast("float32"):
            assert counted <= dense_nbytes(world_size) or world_size == 1, "compression sends more than it saves"


@REDUCER_CHECKS.add()
def check_nothing_to_reduce(pair: Pair) -> None:
    """Check that without gradients, or with empty ones, nothing is sent."""
    for names in ((), ("empty",)):
        for _, reduced, counted in reduce_on_all(pair, 2, names):
            for what, found in (("total", reduced.total), ("transmitted", reduced.transmitted)):
                assert list(found) == list(names), f"{what} has the names {list(found)}, expected {list(names)}"
            assert counted == 0, f"{counted} bytes were sent for {len(names)} empty gradients, expected 0"


@REDUCER_CHECKS.add(applies=lambda pair: pair.case.zeros_send_nothing(pair.codec))
def check_a_rank_of_zeros_transmits_nothing(pair: Pair) -> None:
    """Check that a rank of zeros transmits nothing.

    Not where an owner books the error of a second encoding, also if its own part was zero.
    """

    def body(collective: ThreadedCollective) -> Grads:
        grads = gradients(0)
        if collective.rank:
            grads = {name: torch.zeros_like(grad) for name, grad in grads.items()}
        return dict(reduce(pair, grads, collective).transmitted)

    for transmitted in run_threaded(3, body)[1:]:
        for name, tensor in transmitted.items():
            assert not tensor.any(), f"a rank of zeros has transmitted {tensor.flatten()[:4]}... of {name}"


@REDUCER_CHECKS.add()
def check_a_plan_takes_the_pair(pair: Pair) -> None:
    """Check that a plan takes the pair and survives JSON."""
    compress = tg.Compress(pair.codec, pair.case.reducer)
    assert compress.reducer == pair.case.reducer, f"Compress has the reducer {compress.reducer!r}"
    plan = tg.Plan(compress=compress)
    read = tg.Plan.from_json(plan.to_json())
    assert read == plan, (
        f"as JSON and back, {plan.compress!r} becomes {read.compress!r}; if they look alike, the id is another class's"
    )
