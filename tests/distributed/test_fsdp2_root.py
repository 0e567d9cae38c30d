"""FSDP2 with sync="last" gathers the root's own parameters once a window, and leaves nothing unsharded behind."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import full, ragged_batches, small_model, wrap
from tightgrad.adapters.parts.fsdp2_torch import param_groups

MICRO_BATCHES = 3


def attached(sync, kind="fsdp2"):
    model = wrap(small_model(), kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(MICRO_BATCHES, sync=sync)))


def is_unsharded(module):
    return [group.is_unsharded for group in param_groups(module)] == [True]


def unsharded(sync, kind):
    """Whether the root and the unit in it are unsharded after each micro-batch of two windows, and after each step."""
    model, pipe = attached(sync, kind)
    found = []
    for window in pipe.windows(ragged_batches(0)[: 2 * MICRO_BATCHES]):
        for inputs, labels in window:
            pipe.backward(F.cross_entropy(model(inputs), labels))
            found.append((is_unsharded(model), is_unsharded(model[3])))
        pipe.step()
        found.append((is_unsharded(model), is_unsharded(model[3])))
    return found


@pytest.mark.parametrize(("kind", "ranks"), [("fsdp2", 2), ("hsdp", 4)])
def test_last_keeps_the_root_gathered_within_a_window_and_every_does_not(kind, ranks):
    kept, sharded = (True, False), (False, False)
    assert run_ranks(ranks, unsharded, "last", kind) == [[kept, kept, sharded, sharded] * 2] * ranks
    assert run_ranks(ranks, unsharded, "every", kind) == [[sharded] * 8] * ranks


def left():
    """Whether all parameters are shards after a window that was abandoned, and its weights after the next."""
    model, pipe = attached("last")
    batches = ragged_batches(0)
    for inputs, labels in next(pipe.windows(batches)):
        pipe.backward(F.cross_entropy(model(inputs), labels))
        break
    pipe.abandon()
    are_shards = all(isinstance(parameter, DTensor) for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    for inputs, labels in (window := next(pipe.windows(batches))):
        pipe.backward(F.cross_entropy(model(inputs), labels))
    assert len(window) == MICRO_BATCHES
    pipe.step()
    return are_shards, [full(parameter) for parameter in model.parameters()]


def halved():
    """The same without the window that was abandoned."""
    model, pipe = attached("last")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    for inputs, labels in next(pipe.windows(ragged_batches(0))):
        pipe.backward(F.cross_entropy(model(inputs), labels))
    pipe.step()
    return [full(parameter) for parameter in model.parameters()]


def test_an_abandoned_window_leaves_shards_and_no_stale_weights():
    for (are_shards, found), expected in zip(run_ranks(2, left), run_ranks(2, halved), strict=True):
        assert are_shards
        assert all(map(torch.equal, found, expected))


def looked_at_after(position):
    """Weights after a window in which the model's state was saved behind micro-batch `position`, and that state."""
    model, pipe = attached("last")
    state = {}
    for index, (inputs, labels) in enumerate(next(pipe.windows(ragged_batches(0)))):
        pipe.backward(F.cross_entropy(model(inputs), labels))
        if index == position:
            state = {name: isinstance(value, DTensor) for name, value in model.state_dict().items()}
    pipe.step()
    return [full(parameter) for parameter in model.parameters()], state


def test_a_state_dict_in_mid_window_has_shards_and_changes_nothing():
    for (found, state), (expected, _) in zip(
        run_ranks(2, looked_at_after, 0), run_ranks(2, looked_at_after, None), strict=True
    ):
        assert state
        assert all(state.values())
        assert all(map(torch.equal, found, expected))
