"""Gradients that nobody expects, through every combination that a plan allows: no crash, equal ranks, nothing lost.

Empty, scalar, of one element, zero, equal, denormal, 1e38, bfloat16, in another memory format; used on some ranks only;
with skipped steps, and a save and a load, in between.
"""

import tempfile
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tightgrad as tg
from conformance.test_combinations import ALL_FEEDBACKS, PAIRS, refusal
from support.capture import Capture
from support.training import on_ranks
from support.waiting import patience
from tightgrad.collectives import ThreadedCollective
from tightgrad.core.protocols import Codec, Feedback, Reducer

SHAPES = {"empty": (0, 3), "scalar": (), "one": (1,), "image": (3, 4, 2, 5), "long": (70,), "brain": (9, 8)}
SIZES = (0.0, 1e-45, 1e-38, 1e-30, 1e-3, 1.0, 1e10, 1e30, 1e38)
EPS = 2.0**-24
OVERFLOWS = 2.0**127


@dataclass(frozen=True)
class Step:
    """What happens in one window, on all ranks.

    Args:
        seed: of the numbers.
        size: of the numbers.
        kind: of the numbers.
        unused: names by rank that have no gradient.
        nan_on: the rank whose gradient holds NaN.
        reload: whether the state is saved and loaded before it.
    """

    seed: int
    size: float
    kind: str
    unused: dict[int, frozenset[str]] = field(default_factory=dict)
    nan_on: int | None = None
    reload: bool = False


STEPS = st.lists(
    st.builds(
        Step,
        seed=st.integers(0, 99),
        size=st.sampled_from(SIZES),
        kind=st.sampled_from(("normal", "ties", "one large", "equal")),
        unused=st.dictionaries(st.integers(0, 4), st.frozensets(st.sampled_from(list(SHAPES)), max_size=4), max_size=3),
        nan_on=st.sampled_from((None, None, None, 0, 1)),
        reload=st.booleans(),
    ),
    min_size=2,
    max_size=5,
)


class Strange(nn.Module):
    """Its gradient is what it is given, in the memory format of the parameter."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in SHAPES.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16 if name == "brain" else None)))
        self.image.data = self.image.data.to(memory_format=torch.channels_last)

    def forward(self, gradients: dict[str, Tensor]) -> Tensor:
        return sum(((getattr(self, name) * grad).sum() for name, grad in gradients.items()), start=torch.zeros(()))


def numbers(shape: tuple[int, ...], step: Step, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step.seed + rank)
    values = torch.randn(shape, generator=generator)
    if step.kind == "ties":
        values = values.sign()
    elif step.kind == "equal":
        values = torch.full(shape, -1.0)
    elif step.kind == "one large" and values.numel():
        values.view(-1)[0] = 1e6
    return (values * step.size).clamp(-3e38, 3e38)


def gradients(step: Step, rank: int) -> dict[str, Tensor]:
    unused = step.unused.get(rank, frozenset())
    grads = {name: numbers(shape, step, rank) for name, shape in SHAPES.items() if name not in unused}
    for name in grads.keys() & {"brain"}:
        grads[name] = grads[name].bfloat16()
    if step.nan_on == rank and "long" in grads:
        grads["long"][3] = torch.nan
    return grads


class Ledger:
    """One rank's run: what went in, what was delivered and what is left, in float64."""

    def __init__(self, plan: tg.Plan, collective: ThreadedCollective, folder: str) -> None:
        self.plan, self.collective, self.folder = plan, collective, folder
        self.model = Strange()
        self.optimizer = Capture(self.model.named_parameters())
        self.pipe = tg.attach(self.model, self.optimizer, plan, collective=collective)
        self.put_in = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        self.largest = 0.0

    def run(self, steps: list[Step]) -> "Ledger":
        for step in steps:
            if step.reload:
                self.reload()
            self.step(step)
        return self

    def step(self, step: Step) -> None:
        grads = gradients(step, self.collective.rank)
        before = self.pipe.state.slots
        for window in self.pipe.windows([grads]):
            for batch in window:
                loss = self.model(batch)
                self.pipe.backward(loss if loss.requires_grad else loss + 0.0 * self.model.one.sum())
            record = self.pipe.step()
        if record.skipped:
            assert self.pipe.state.slots is before
            return
        for name, grad in grads.items():
            self.put_in[name] += grad.double() / self.collective.world_size
            self.largest = max(self.largest, float(grad.abs().max()) if grad.numel() else 0.0)

    def reload(self) -> None:
        self.pipe.save(self.folder)
        steps = self.optimizer.steps
        self.optimizer = Capture(self.model.named_parameters())
        self.optimizer.steps = steps
        self.pipe = tg.attach(self.model, self.optimizer, self.plan, collective=self.collective)
        self.pipe.load(self.folder)

    def delivered(self) -> dict[str, Tensor]:
        total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        for step in self.optimizer.steps:
            for name, grad in step.items():
                if grad is not None:
                    total[name] += grad.double()
        return total

    def left(self, name: str) -> Tensor:
        held = self.pipe.state.slots.get("residual", {}).get(name)
        return torch.zeros(SHAPES[name]).double() if held is None else held.double()


def run(
    codec: Codec | None, reducer: Reducer, feedback: Feedback | None, world_size: int, steps: list[Step]
) -> list[Ledger]:
    plan = tg.Plan(compress=tg.Compress(codec, reducer, feedback), guard=tg.Guard("skip", max_consecutive_skips=1_000))
    with tempfile.TemporaryDirectory() as folder:

        def body(collective: ThreadedCollective) -> Ledger:
            return Ledger(plan, collective, folder).run(steps)

        ledgers: list[Any] = on_ranks(world_size, body)
    for ledger in ledgers:
        if isinstance(ledger, Exception):
            raise ledger
    return ledgers


def assert_ranks_are_equal(ledgers: list[Ledger]) -> None:
    first, *others = ledgers
    for other in others:
        assert len(first.optimizer.steps) == len(other.optimizer.steps)
        for mine, theirs in zip(first.optimizer.steps, other.optimizer.steps, strict=True):
            for name in SHAPES:
                if mine[name] is None or theirs[name] is None:
                    assert mine[name] is theirs[name], name
                else:
                    assert torch.equal(mine[name], theirs[name]), name
                    assert bool(mine[name].isfinite().all()), name


def check_nothing_is_lost(pair, world_size: int, steps: list[Step]) -> None:
    """All that went in has come out, or is in a residual, to float32's rounding of the largest number."""
    if refusal(*pair, tg.ErrorFeedback()):
        return
    ledgers = run(*pair, tg.ErrorFeedback(), world_size, steps)
    assert_ranks_are_equal(ledgers)
    largest = max(ledger.largest for ledger in ledgers)
    for name in SHAPES.keys() - {"brain"}:  # which is delivered in bfloat16
        put_in = sum(ledger.put_in[name] for ledger in ledgers)
        left = sum(ledger.left(name) for ledger in ledgers)
        error = (ledgers[0].delivered()[name] + left - put_in).abs()
        # Sums, residuals and two encodings of numbers that may be a hundred times the largest before they are sent.
        tolerance = 1_000 * len(steps) * world_size * EPS * largest + 1e-44
        assert bool((error <= tolerance).all()), (name, float(error.max()), tolerance)


COMBINATIONS = [(*pair, feedback) for pair in PAIRS for feedback in ALL_FEEDBACKS if not refusal(*pair, feedback)]


@settings(max_examples=20)
@given(combination=st.sampled_from(COMBINATIONS), world_size=st.sampled_from((1, 2, 3, 5)), steps=STEPS)
def test_any_combination_lives_with_any_gradient(combination, world_size: int, steps: list[Step]) -> None:
    assert_ranks_are_equal(run(*combination, world_size, steps))


@settings(max_examples=12)
@given(pair=st.sampled_from(PAIRS[1:]), world_size=st.sampled_from((1, 2, 3, 5)), steps=STEPS)
def test_error_feedback_loses_nothing(pair, world_size: int, steps: list[Step]) -> None:
    check_nothing_is_lost(pair, world_size, steps)


@pytest.mark.slow
@pytest.mark.timeout(patience(900))
@settings(max_examples=3_000)
@given(combination=st.sampled_from(COMBINATIONS), world_size=st.sampled_from((1, 2, 3, 5)), steps=STEPS)
def test_any_combination_lives_with_any_gradient_at_length(combination, world_size: int, steps: list[Step]) -> None:
    assert_ranks_are_equal(run(*combination, world_size, steps))


@pytest.mark.slow
@pytest.mark.timeout(patience(900))
@settings(max_examples=300)
@given(pair=st.sampled_from(PAIRS[1:]), world_size=st.sampled_from((1, 2, 3, 5)), steps=STEPS)
def test_error_feedback_loses_nothing_at_length(pair, world_size: int, steps: list[Step]) -> None:
    check_nothing_is_lost(pair, world_size, steps)
