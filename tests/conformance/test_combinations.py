"""Every codec with every reducer with every feedback: it runs and keeps its promises, or is refused with the reason.

The product is made from `cases.py`, which `test_complete.py` holds against the registry: a new method joins by itself.
"""

import itertools
from contextlib import suppress
from functools import partial

import pytest
import torch

import tightgrad as tg
from conformance.cases import CODECS, FEEDBACKS, REDUCERS
from tightgrad.collectives import ThreadedCollective, run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.errors import ConfigError, IncompatiblePlanError
from tightgrad.core.protocols import Codec, Feedback, ReduceContext, Reducer
from tightgrad.core.rng import StepRng
from tightgrad.core.types import MODEL, Grads, Reduced, State
from tightgrad.plan.registry import methods
from tightgrad.reducers import Hierarchical

WORLD_SIZE = 3  # under `Hierarchical`, nodes of two ranks and of one
STEPS = 3
EPS = 2.0**-24
SHAPES = {"matrix": (17, 13), "bias": (9,), "scalar": (), "empty": (0,)}


def between_nodes() -> list[Reducer]:
    """`Hierarchical` around every reducer that it takes."""
    found = []
    for case in REDUCERS:
        with suppress(ConfigError):  # it takes none that remembers something, nor itself
            found.append(Hierarchical(2, case.reducer))
    return found


ALL_REDUCERS = [*(case.reducer for case in REDUCERS if case.reducer.card.id != "hierarchical"), *between_nodes()]
ALL_FEEDBACKS: list[Feedback | None] = [None, *(case.feedback for case in FEEDBACKS)]


def refusal(codec: Codec | None, reducer: Reducer, feedback: Feedback | None) -> str:
    try:
        tg.Plan(compress=tg.Compress(codec, reducer, feedback))
    except IncompatiblePlanError as error:
        return str(error)
    return ""


PRODUCT = list(itertools.product([None, *CODECS], ALL_REDUCERS, ALL_FEEDBACKS))
PAIRS = [
    (codec, reducer)
    for codec, reducer in itertools.product([None, *CODECS], ALL_REDUCERS)
    if not refusal(codec, reducer, None)
]


ALLOWED = [combination for combination in PRODUCT if not refusal(*combination)]


def ids(base: type) -> set[str]:
    return {name for name, cls in methods().items() if issubclass(cls, base)}


def test_the_product_is_that_of_the_registry() -> None:
    for place, base in enumerate((Codec, Reducer, Feedback)):
        for combinations in (PRODUCT, ALLOWED):  # and no method is refused altogether
            assert {part.card.id for combination in combinations if (part := combination[place])} == ids(base)


def test_a_refusal_gives_the_reason_and_a_way_out() -> None:
    names = ids(Codec) | ids(Reducer) | ids(Feedback)
    for codec, reducer, feedback in PRODUCT:
        reason = refusal(codec, reducer, feedback)
        if reason:
            where = f"{codec!r}, {reducer!r}, {feedback!r}: {reason}"
            assert any(word in reason for word in ("use ", "take ", "drop ", "such as ")), where
            assert "drop" in reason or any(name in reason for name in names), where


def gradients(rank: int, step: int) -> Grads:
    generator = torch.Generator().manual_seed(1_000 * rank + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


class Rank:
    """One rank's steps: what went into the reducer, what came out, and what is remembered."""

    def __init__(self, codec: Codec | None, reducer: Reducer, feedback: Feedback | None) -> None:
        self.codec, self.reducer, self.feedback = codec, reducer, feedback
        self.values: list[Grads] = []
        self.reduced: list[Reduced] = []
        self.delivered: list[Grads] = []
        self.states: list[State] = [{}]

    def step(self, step: int, collective: ThreadedCollective) -> None:
        context = ReduceContext(collective, StepRng(0, step, collective.rank), StageClock())
        inner = partial(self.reducer.reduce, codec=self.codec, state=self.states[-1], context=context)

        def booked(values: Grads) -> Reduced:
            # A feedback may write into them afterwards: what is not sent is left in them.
            self.values.append({name: value.clone() for name, value in values.items()})
            self.reduced.append(inner(values))
            return self.reduced[-1]

        grads = gradients(collective.rank, step)
        outcome = self.feedback.reduce_(grads, self.states[-1], booked) if self.feedback else booked(grads)
        assert not context.failures
        self.delivered.append(outcome.total)
        self.states.append(outcome.state)


def run(codec: Codec | None, reducer: Reducer, feedback: Feedback | None) -> list[Rank]:
    def body(collective: ThreadedCollective) -> Rank:
        rank = Rank(codec, reducer, feedback)
        for step in range(STEPS):
            rank.step(step, collective)
        return rank

    return run_threaded(WORLD_SIZE, body)


def quick_ones() -> set[int]:
    """Places in `ALLOWED` that hold, together, every two methods that may meet, each pair with other feedback first."""
    chosen, seen = set(), set()
    for number, pair in enumerate(PAIRS):
        places = [place for place, one in enumerate(ALLOWED) if one[:2] == pair]
        for place in places[number % len(places) :] + places[: number % len(places)]:
            met = set(itertools.combinations(enumerate(ALLOWED[place]), 2))
            if not met <= seen:
                chosen.add(place)
                seen |= met
    return chosen


QUICK = quick_ones()


def test_the_quick_ones_are_part_of_all() -> None:
    for two in itertools.combinations(range(3), 2):
        of_all, of_quick = (
            {tuple(ALLOWED[p][at] for at in two) for p in places} for places in (range(len(ALLOWED)), QUICK)
        )
        assert of_quick == of_all
    assert len(QUICK) < len(ALLOWED) / 2


@pytest.mark.parametrize(
    "quick", [pytest.param(True, id="in turn"), pytest.param(False, id="others", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("pair", range(len(PAIRS)), ids=lambda pair: "-".join(repr(part)[:90] for part in PAIRS[pair]))
def test_a_combination_that_a_plan_allows_keeps_its_promises(pair: int, quick: bool) -> None:
    codec, reducer = PAIRS[pair]
    for place, (*both, feedback) in enumerate(ALLOWED):
        if tuple(both) != PAIRS[pair] or (place in QUICK) != quick:
            continue
        plan = tg.Plan(compress=tg.Compress(codec, reducer, feedback))
        assert tg.Plan.from_json(plan.to_json()) == plan
        ranks = run(codec, reducer, feedback)
        assert_ranks_are_equal(ranks, plan)
        assert_what_is_sent_adds_up(ranks)
        for rank in ranks:
            assert_state_fits(rank.states[-1], plan)
            assert_the_books_balance(rank, feedback, plan)
        if feedback is not None and feedback.card.id == "ef21":
            assert_estimates_add_up(ranks)


def assert_ranks_are_equal(ranks: list[Rank], plan: tg.Plan) -> None:
    first, *others = ranks
    for other in others:
        for mine, theirs in zip(first.delivered, other.delivered, strict=True):
            for name, shape in SHAPES.items():
                assert mine[name].shape == shape
                assert torch.equal(mine[name], theirs[name]), name
        for name, slot in plan.slots.items():
            if slot.across_ranks == "equal":
                for key, tensor in first.states[-1].get(name, {}).items():
                    assert torch.equal(tensor, other.states[-1][name][key]), (name, key)


def assert_what_is_sent_adds_up(ranks: list[Rank]) -> None:
    for step in range(STEPS):
        for name in SHAPES:
            sent = torch.stack([rank.reduced[step].transmitted[name].double() for rank in ranks])
            total = ranks[0].reduced[step].total[name].double()
            # Differences of sums round by 2^-24 of the largest numbers that were added.
            largest = max((float(rank.values[step][name].abs().max()) for rank in ranks if total.numel()), default=0.0)
            largest = max(largest, float(sent.abs().max()) if sent.numel() else 0.0)
            assert bool(((sent.sum(dim=0) - total).abs() <= 8 * (WORLD_SIZE + 1) * EPS * largest).all()), name


def assert_state_fits(state: State, plan: tg.Plan) -> None:
    """What a checkpoint of it would be checked against."""
    assert set(state) <= set(plan.slots)
    for name, values in state.items():
        for key, tensor in values.items():
            assert key != MODEL
            assert plan.slots[name].fits(tensor, SHAPES[key]), (name, key)


def assert_the_books_balance(rank: Rank, feedback: Feedback | None, plan: tg.Plan) -> None:
    """The residual is what went in less what was sent: exactly, or to a level of 8 bits."""
    if feedback is None or "residual" not in plan.slots:
        return
    slot = plan.slots["residual"]
    for values, reduced, state in zip(rank.values, rank.reduced, rank.states[1:], strict=True):
        for name, value in values.items():
            left = (value - reduced.transmitted[name]).view(-1)
            held = slot.values(state["residual"][name]).view(-1)
            level = float(left.abs().max()) / 127 * 1.001 if slot.storage and left.numel() else 0.0
            assert bool(((held - left).abs() <= level).all()), name


def assert_estimates_add_up(ranks: list[Rank]) -> None:
    for name in SHAPES:
        estimates = torch.stack([rank.states[-1]["ef21_estimate"][name].double() for rank in ranks])
        total = ranks[0].states[-1]["ef21_total"][name].double()
        size = float(estimates.abs().max()) + 4.0 if total.numel() else 0.0
        assert bool(((estimates.sum(dim=0) - total).abs() <= 16 * STEPS * (WORLD_SIZE + 1) * EPS * size).all()), name
        assert torch.equal(ranks[0].delivered[-1][name].double(), total)
