"""Ranks that have drifted apart are told so, with names, before they go on."""

import copy

import pytest
import torch
from torch import nn

import tightgrad as tg
from tightgrad.collectives import run_threaded
from tightgrad.sync.drift import fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_fingerprint_sees_one_bit_and_every_place(dtype):
    values = torch.randn(5000).to(dtype)
    seen = {int(fingerprint(values))}
    for index in (0, 1, 4999):
        changed = values.clone()
        changed[index] = (
            torch.nextafter(changed[index].float(), torch.tensor(torch.inf)) if dtype is torch.float32 else 7
        )
        seen.add(int(fingerprint(changed)))
    swapped = values.clone()
    swapped[[3, 4]] = values[[4, 3]]
    seen |= {int(fingerprint(swapped)), int(fingerprint(values[:-1])), int(fingerprint(-values))}
    assert len(seen) == 7
    assert int(fingerprint(values.view(50, 100).clone())) in seen


def test_a_large_tensor_is_taken_in_pieces_that_make_no_difference():
    values = torch.zeros(2**20 + 3)
    first = int(fingerprint(values))
    values[-1] = 1.0
    assert int(fingerprint(values)) != first


def drawn():
    """Once: ranks that are threads share torch's global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


MODEL = drawn()


def train(collective, spoil, compare_every=2):
    """Rank 1's weights are changed by hand before step 3; returns the steps done and the error."""
    model = copy.deepcopy(MODEL)
    plan = tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(8)), guard=tg.Guard(compare_every=compare_every))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective)
    steps = 0
    try:
        for window in pipe.windows([torch.ones(2, 4)] * 6):
            for batch in window:
                pipe.backward(model(batch).square().mean())
            if spoil and steps == 3 and collective.rank == 1:
                with torch.no_grad():
                    model[1].bias[0] = torch.nextafter(model[1].bias[0], torch.tensor(9.0))
            before = [p.detach().clone() for p in model.parameters()]
            pipe.step()
            steps += 1
    except tg.RankMismatchError as error:
        assert all(map(torch.equal, before, model.parameters()))
        return steps, str(error)
    return steps, ""


def test_a_weight_changed_on_one_rank_is_named_on_all():
    results = run_threaded(3, lambda collective: train(collective, spoil=True))
    assert len(set(results)) == 1
    steps, message = results[0]
    assert steps == 4  # changed before step 3, compared at step 4
    assert "at step 4" in message
    assert "the weight of '1.bias' differs on rank 1" in message
    assert "0.weight" not in message


def test_ranks_that_are_alike_go_on_and_nobody_looks_unless_asked():
    assert set(run_threaded(2, lambda collective: train(collective, spoil=False))) == {(6, "")}
    assert set(run_threaded(2, lambda collective: train(collective, spoil=True, compare_every=0))) == {(6, "")}
