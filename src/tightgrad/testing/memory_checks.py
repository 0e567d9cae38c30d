"""How a feedback treats what it remembers: it is handed in and out, and never changed in place."""

from functools import partial

import torch

from tightgrad.collectives import ThreadedCollective, run_threaded
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import State
from tightgrad.testing.checks import Checks
from tightgrad.testing.feedback_checks import SHAPES, Bank, Sending, gradients

MEMORY_CHECKS = Checks()


@MEMORY_CHECKS.add()
def check_state_is_never_changed_in_place(sending: Sending) -> None:
    """Check that nobody writes into the old state, which a skipped step keeps."""

    def body(collective: ThreadedCollective) -> None:
        bank = Bank(sending)
        bank.step(0, collective)
        old = bank.state
        before = {slot: {name: t.clone() for name, t in values.items()} for slot, values in old.items()}
        bank.step(1, collective)
        assert any(bool(t.any()) for values in before.values() for t in values.values()), "nothing was remembered"
        for slot, values in before.items():
            assert list(old[slot]) == list(values)
            for name, tensor in values.items():
                assert torch.equal(old[slot][name], tensor), f"{slot} of {name} was changed in place"

    run_threaded(2, body)


@MEMORY_CHECKS.add()
def check_a_parameter_left_out_keeps_what_is_remembered(sending: Sending) -> None:
    """Check that a call about one parameter leaves what is remembered of the others: gradients come in groups."""

    def body(collective: ThreadedCollective) -> None:
        context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        state: State = {}
        inner = partial(sending.reducer.reduce, codec=sending.codec, state=state, context=context)
        feedback = sending.case.feedback
        first = feedback.reduce_(gradients(collective.rank, 0), state, inner)
        only_bias = {"bias": gradients(collective.rank, 1)["bias"]}
        second = feedback.reduce_(only_bias, first.state, inner)
        for slot in feedback.slots:
            for name in ("matrix", "scalar"):
                kept, before = second.state[slot.name].get(name), first.state[slot.name][name]
                assert kept is not None, f"{slot.name} of {name} was forgotten, since the call was about another one"
                assert torch.equal(kept, before), f"{slot.name} of {name} has changed without a gradient"
            changed = not torch.equal(second.state[slot.name]["bias"], first.state[slot.name]["bias"])
            assert changed, f"{slot.name} of bias is the same after a second gradient"

    run_threaded(2, body)


@MEMORY_CHECKS.add()
def check_slots_fit_what_is_remembered(sending: Sending) -> None:
    """Check that each tensor fits its slot and none is without one, as loading a checkpoint does."""

    def body(collective: ThreadedCollective) -> State:
        bank = Bank(sending)
        bank.step(0, collective)
        return bank.state

    slots = {slot.name: slot for part in (sending.case.feedback, sending.reducer) for slot in part.slots}
    for state in run_threaded(2, body):
        assert set(state) <= set(slots), f"{set(state) - set(slots)} is remembered and has no Slot"
        for name, values in state.items():
            for key, tensor in values.items():
                assert slots[name].fits(tensor, SHAPES.get(key, ())), f"{name} of {key} does not fit its Slot"
