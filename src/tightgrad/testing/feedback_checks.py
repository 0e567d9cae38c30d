"""Conservation: all that was put in is all that was sent plus what is left."""

from dataclasses import dataclass
from functools import partial

import torch

from tightgrad.collectives import ThreadedCollective, run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import Codec, Feedback, ReduceContext, Reducer
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, Reduced, State, slots_with
from tightgrad.testing.checks import Checks

FEEDBACK_CHECKS = Checks()
STEPS = 12
EPS = 2.0**-24
SHAPES = {"matrix": (17, 13), "bias": (9,), "scalar": (), "empty": (0,)}


@dataclass(frozen=True)
class FeedbackCase:
    """Says whether a feedback conserves what it is given.

    Args:
        feedback: canonical settings.
        conserves: whether all that is sent plus the slots with role="residual" is all that was put in, to float32.
    """

    feedback: Feedback
    conserves: bool = True


@dataclass(frozen=True)
class Sending:
    """A feedback's case, with a reducer and a codec that it is used with."""

    case: FeedbackCase
    reducer: Reducer
    codec: Codec | None

    def __repr__(self) -> str:
        return f"{self.case.feedback!r}-{self.reducer!r:.70}-{self.codec!r:.70}"


def gradients(rank: int, step: int) -> Grads:
    """Draw a rank's gradients of a step."""
    generator = torch.Generator().manual_seed(1_000 * rank + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


class Bank:
    """One rank's books: what went in, what came out, and how large the numbers were that got rounded."""

    def __init__(self, sending: Sending) -> None:
        self.sending = sending
        self.put_in = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        self.delivered = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        self.rounded = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
        self.state: State = {}

    def step(self, step: int, collective: ThreadedCollective) -> Grads:
        """Send one step's gradients, and book them."""
        sending = self.sending
        context = ReduceContext(collective, StepRng(0, step, collective.rank), StageClock())
        inner = partial(sending.reducer.reduce, codec=sending.codec, state=self.state, context=context)

        def booked(values: Grads) -> Reduced:
            reduced = inner(values)
            for name, value in values.items():
                self.rounded[name] += 2 * value.double().abs() + reduced.transmitted[name].double().abs()
            return reduced

        grads = gradients(collective.rank, step)
        for name, grad in grads.items():
            self.put_in[name] += grad.double()
        reduced = sending.case.feedback.reduce_(grads, self.state, booked)
        self.state = reduced.state
        for name in grads:
            self.delivered[name] += reduced.total[name].double()
            self.rounded[name] += reduced.total[name].double().abs()
        return reduced.total

    def left(self, name: str) -> torch.Tensor:
        """Return what was not sent yet, in float64."""
        slots = {slot.name: slot for slot in self.sending.case.feedback.slots}
        found = slots_with("residual", slots)
        assert found, f'none of the slots {list(slots)} has role="residual", so flush() would deliver nothing'
        held = [slot.values(self.state[slot.name][name]).view(SHAPES[name]).double() for slot in found]
        return torch.stack(held).sum(dim=0)


def conserves(sending: Sending) -> bool:
    """Return whether nothing is ever lost."""
    return sending.case.conserves


@FEEDBACK_CHECKS.add(variants={"1 rank": 1, "3 ranks": 3}, applies=conserves)
def check_conservation(sending: Sending, world_size: int) -> None:
    """Check that what was delivered and what is left add up to what was put in, over many steps and all ranks."""

    def body(collective: ThreadedCollective) -> Bank:
        bank = Bank(sending)
        for step in range(STEPS):
            bank.step(step, collective)
        return bank

    banks = run_threaded(world_size, body)
    for name in SHAPES:
        put_in = torch.stack([bank.put_in[name] for bank in banks]).sum(dim=0)
        left = torch.stack([bank.left(name) for bank in banks]).sum(dim=0)
        # g + e, v - sent and the reducer's sums each round once a step and rank.
        tolerance = (world_size + 2) * EPS * torch.stack([bank.rounded[name] for bank in banks]).sum(dim=0)
        error = (banks[0].delivered[name] + left - put_in).abs()
        assert bool((error <= tolerance).all()), (
            f"of {name}, {float(error.max()):.3g} was neither delivered nor kept after {STEPS} steps"
        )


@FEEDBACK_CHECKS.add()
def check_ranks_stay_bitwise_equal(sending: Sending) -> None:
    """Check that every rank is given the same total at every step."""

    def body(collective: ThreadedCollective) -> list[Grads]:
        bank = Bank(sending)
        return [bank.step(step, collective) for step in range(4)]

    first, *others = run_threaded(3, body)
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            for name in SHAPES:
                assert torch.equal(mine[name], theirs[name]), f"the total of {name} differs between ranks"


@FEEDBACK_CHECKS.add()
def check_what_is_delivered_is_not_what_is_remembered(sending: Sending) -> None:
    """Check that the totals, which clipping changes in place, share no memory with the state."""

    def body(collective: ThreadedCollective) -> None:
        bank = Bank(sending)
        total = bank.step(0, collective)
        before = {slot: {name: held.clone() for name, held in values.items()} for slot, values in bank.state.items()}
        for tensor in total.values():
            tensor.add_(1.0)
        for slot, values in before.items():
            for name, held in values.items():
                assert torch.equal(bank.state[slot][name], held), f"{slot} of {name} shares memory with the total"

    run_threaded(2, body)
