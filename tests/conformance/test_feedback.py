"""Conservation: all that was put in is all that was sent plus what is left."""

from functools import partial

import pytest
import torch

from conformance.cases import CODECS, FEEDBACKS, REDUCERS
from tightgrad.collectives import ThreadedCollective, run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import Codec, Feedback, ReduceContext, Reducer
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, Reduced, State

STEPS = 12
EPS = 2.0**-24
SHAPES = {"matrix": (17, 13), "bias": (9,), "scalar": (), "empty": (0,)}

PAIRS = [(reducer, codec) for reducer, _ in REDUCERS for codec in CODECS if reducer.refuses(codec) is None]
every_pair = pytest.mark.parametrize(("reducer", "codec"), PAIRS, ids=lambda value: repr(value)[:70])
every_feedback = pytest.mark.parametrize(
    "feedback", [feedback for feedback, conserves in FEEDBACKS if conserves], ids=repr
)


def gradients(rank: int, step: int) -> Grads:
    generator = torch.Generator().manual_seed(1_000 * rank + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


class Bank:
    """One rank's books: what went in, what came out, and how large the numbers were that got rounded."""

    def __init__(self) -> None:
        self.put_in = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        self.delivered = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        self.rounded = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        self.state: State = {}

    def step(
        self, feedback: Feedback, reducer: Reducer, codec: Codec, step: int, collective: ThreadedCollective
    ) -> Grads:
        context = ReduceContext(collective, StepRng(0, step, collective.rank), StageClock())
        inner = partial(reducer.reduce, codec=codec, state=self.state, context=context)

        def booked(values: Grads) -> Reduced:
            reduced = inner(values)
            for name, value in values.items():
                self.rounded[name] += 2 * value.double().abs() + reduced.transmitted[name].double().abs()
            return reduced

        grads = gradients(collective.rank, step)
        reduced = feedback.reduce(grads, self.state, booked)
        self.state = reduced.state
        for name, grad in grads.items():
            self.put_in[name] += grad.double()
            self.delivered[name] += reduced.total[name].double()
            self.rounded[name] += reduced.total[name].double().abs()
        return reduced.total


@every_pair
@every_feedback
@pytest.mark.parametrize("world_size", [1, 3])
def test_conservation(feedback: Feedback, reducer: Reducer, codec: Codec, world_size: int) -> None:
    def body(collective: ThreadedCollective) -> Bank:
        bank = Bank()
        for step in range(STEPS):
            bank.step(feedback, reducer, codec, step, collective)
        return bank

    banks = run_threaded(world_size, body)
    (slot,) = (slot.name for slot in feedback.slots if slot.across_ranks == "sum")
    for name in SHAPES:
        put_in = sum(bank.put_in[name] for bank in banks)
        left = sum(bank.state[slot][name].double() for bank in banks)
        # g + e, v - sent and the reducer's sums each round once a step and rank.
        tolerance = (world_size + 2) * EPS * sum(bank.rounded[name] for bank in banks)
        error = (banks[0].delivered[name] + left - put_in).abs()
        assert bool((error <= tolerance).all()), name


@every_pair
@every_feedback
def test_ranks_stay_bitwise_equal(feedback: Feedback, reducer: Reducer, codec: Codec) -> None:
    def body(collective: ThreadedCollective) -> list[Grads]:
        bank = Bank()
        return [bank.step(feedback, reducer, codec, step, collective) for step in range(4)]

    first, *others = run_threaded(3, body)
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in SHAPES)


@every_feedback
def test_state_is_never_changed_in_place(feedback: Feedback) -> None:
    """A skipped step keeps the old state by keeping the old mapping, so nobody may write into it."""
    codec = next(codec for reducer, codec in PAIRS if codec.card.id == "topk")
    reducer = next(reducer for reducer, other in PAIRS if other == codec)

    def body(collective: ThreadedCollective) -> None:
        bank = Bank()
        bank.step(feedback, reducer, codec, 0, collective)
        old = bank.state
        before = {slot: {name: t.clone() for name, t in values.items()} for slot, values in old.items()}
        bank.step(feedback, reducer, codec, 1, collective)
        assert any(bool(t.any()) for values in before.values() for t in values.values())
        for slot, values in before.items():
            assert list(old[slot]) == list(values)
            for name, tensor in values.items():
                assert torch.equal(old[slot][name], tensor)

    run_threaded(2, body)


@every_feedback
def test_a_parameter_left_out_keeps_its_residual(feedback: Feedback) -> None:
    codec = next(codec for _, codec in PAIRS if codec.card.id == "topk")
    reducer = next(reducer for reducer, other in PAIRS if other == codec)

    def body(collective: ThreadedCollective) -> None:
        context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        state: State = {}
        inner = partial(reducer.reduce, codec=codec, state=state, context=context)
        first = feedback.reduce(gradients(collective.rank, 0), state, inner)
        only_bias = {"bias": gradients(collective.rank, 1)["bias"]}
        second = feedback.reduce(only_bias, first.state, inner)
        for slot in feedback.slots:
            assert torch.equal(second.state[slot.name]["matrix"], first.state[slot.name]["matrix"])
            assert not torch.equal(second.state[slot.name]["bias"], first.state[slot.name]["bias"])

    run_threaded(2, body)
