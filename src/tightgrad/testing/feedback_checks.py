"""What every feedback must do: lose nothing of what it is given, and treat what it remembers as everybody's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tightgrad.collectives import ThreadedCollective, run_threaded
from tightgrad.core.protocols import Codec, Feedback, Reducer
from tightgrad.core.types import Grads, Reduced, State, slots_with
from tightgrad.testing.checks import Checks, OfLastSubject, context_of

FEEDBACK_CHECKS = Checks()
MEMORY_CHECKS = Checks()
_BANKS = OfLastSubject()
STEPS = 12
FEW_STEPS = 4
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

    def leaves_much(self) -> bool:
        """Return whether the codec leaves enough out for there to be something to remember."""
        return self.codec is not None and self.codec.contraction(256) < 0.9


def gradients(rank: int, step: int) -> Grads:
    """Draw a rank's gradients of a step."""
    generator = torch.Generator().manual_seed(1_000 * rank + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def copy(state: State) -> State:
    """Return a state that stays when the other one is written to."""
    return {slot: {name: held.clone() for name, held in values.items()} for slot, values in state.items()}


def assert_unchanged(state: State, before: State, what: str) -> None:
    """Raise an AssertionError unless a state is as it was."""
    for slot, values in before.items():
        assert list(state[slot]) == list(values), (
            f"{slot} has entries for {list(state[slot])}, expected {list(values)}: it {what}"
        )
        for name, held in values.items():
            assert torch.equal(state[slot][name], held), f"{slot} of {name} {what}"


class Bank:
    """One rank's books: what went in, what came out, and how large the numbers were that got rounded."""

    def __init__(self, sending: Sending, collective: ThreadedCollective) -> None:
        self.sending, self.collective = sending, collective
        self.put_in, self.delivered, self.rounded = (
            {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()} for _ in range(3)
        )
        self.state: State = {}
        self.totals: list[Grads] = []

    def step(self, step: int, names: tuple[str, ...] = tuple(SHAPES)) -> Grads:
        """Send one step's gradients, and book them."""
        sending, context = self.sending, context_of(self.collective, step)
        inner = partial(sending.reducer.reduce, codec=sending.codec, state=self.state, context=context)

        def booked(values: Grads) -> Reduced:
            reduced = inner(values)
            for name, value in values.items():
                self.rounded[name] += 2 * value.double().abs() + reduced.transmitted[name].double().abs()
            return reduced

        grads = {name: grad for name, grad in gradients(self.collective.rank, step).items() if name in names}
        for name, grad in grads.items():
            self.put_in[name] += grad.double()
        reduced = sending.case.feedback.reduce_(grads, self.state, booked)
        self.state = reduced.state
        for name, total in reduced.total.items():
            self.delivered[name] += total.double()
            self.rounded[name] += total.double().abs()
        self.totals.append(reduced.total)
        return reduced.total

    def left(self, name: str) -> torch.Tensor:
        """Return what was not sent yet, in float64."""
        slots = {slot.name: slot for slot in self.sending.case.feedback.slots}
        found = slots_with("residual", slots)
        assert found, f'none of the slots {list(slots)} has role="residual", so flush() would deliver nothing'
        held = [slot.values(self.state[slot.name][name]).view(SHAPES[name]).double() for slot in found]
        return torch.stack(held).sum(dim=0)


def on_ranks(world_size: int, sending: Sending, body: Callable[[Bank], Any]) -> list[Any]:
    """Run `body` with a rank's bank on so many ranks, and return what each gives."""
    return run_threaded(world_size, lambda collective: body(Bank(sending, collective)))


def after_all_steps(sending: Sending, world_size: int) -> list[Bank]:
    """Return the banks after `STEPS` steps, or `FEW_STEPS` where nothing is added up; the same to each check."""

    def body(bank: Bank) -> Bank:
        for step in range(STEPS if sending.case.conserves else FEW_STEPS):
            bank.step(step)
        return bank

    banks: list[Bank] = _BANKS.get(sending, world_size, lambda: on_ranks(world_size, sending, body))
    return banks


@FEEDBACK_CHECKS.add(variants={"1 rank": 1, "3 ranks": 3}, applies=lambda sending: sending.case.conserves)
def check_conservation(sending: Sending, world_size: int) -> None:
    """Check that what was delivered and what is left add up to what was put in, over many steps and all ranks."""
    banks = after_all_steps(sending, world_size)
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
    first, *others = after_all_steps(sending, 3)
    for other in others:
        for mine, theirs in zip(first.totals, other.totals, strict=True):
            for name in SHAPES:
                assert torch.equal(mine[name], theirs[name]), f"the total of {name} differs between ranks"


@FEEDBACK_CHECKS.add()
def check_what_is_delivered_is_not_what_is_remembered(sending: Sending) -> None:
    """Check that the totals, which clipping changes in place, share no memory with the state."""

    def body(bank: Bank) -> None:
        total = bank.step(0)
        before = copy(bank.state)
        for tensor in total.values():
            tensor.add_(1.0)
        assert_unchanged(bank.state, before, "shares memory with the total")

    on_ranks(2, sending, body)


@MEMORY_CHECKS.add()
def check_state_is_never_changed_in_place(sending: Sending) -> None:
    """Check that nobody writes into the old state, which a skipped step keeps."""

    def body(bank: Bank) -> None:
        bank.step(0)
        old, before = bank.state, copy(bank.state)
        bank.step(1)
        assert any(bool(t.any()) for values in before.values() for t in values.values()), "nothing was remembered"
        assert_unchanged(old, before, "was changed in place")

    on_ranks(2, sending, body)


@MEMORY_CHECKS.add()
def check_a_parameter_left_out_keeps_what_is_remembered(sending: Sending) -> None:
    """Check that a call about one parameter leaves what is remembered of the others: gradients come in groups."""

    def body(bank: Bank) -> None:
        bank.step(0)
        first = bank.state
        bank.step(1, ("bias",))
        for slot in sending.case.feedback.slots:
            kept, before = bank.state[slot.name], first[slot.name]
            for name in ("matrix", "scalar"):
                assert name in kept, f"{slot.name} of {name} was forgotten, since the call was about another one"
                assert torch.equal(kept[name], before[name]), f"{slot.name} of {name} has changed without a gradient"
            assert not torch.equal(kept["bias"], before["bias"]), f"{slot.name} of bias ignores a second gradient"

    on_ranks(2, sending, body)


@MEMORY_CHECKS.add()
def check_slots_fit_what_is_remembered(sending: Sending) -> None:
    """Check that each tensor fits its slot and none is without one, as loading a checkpoint does."""

    def body(bank: Bank) -> State:
        bank.step(0)
        return bank.state

    slots = {slot.name: slot for part in (sending.case.feedback, sending.reducer) for slot in part.slots}
    for state in on_ranks(2, sending, body):
        assert set(state) <= set(slots), f"{set(state) - set(slots)} is remembered and has no Slot"
        for name, values in state.items():
            for key, tensor in values.items():
                assert slots[name].fits(tensor, SHAPES.get(key, ())), f"{name} of {key} does not fit its Slot"
