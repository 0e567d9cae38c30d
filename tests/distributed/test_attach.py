"""What only real ranks can show: ranks that disagree, wrappers that are refused, NaN on one of them."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.wrapping import full, small_model, wrap
from tightgrad.collectives import TorchCollective

CLIP = tg.Plan(clip=tg.clip.GlobalNorm(1.0))
DIFFERENCES = {
    "plan": (small_model, {0: CLIP, 1: tg.Plan(clip=tg.clip.GlobalNorm(2.0))}, {}),
    "empty plan": (small_model, {0: CLIP, 1: tg.Plan()}, {}),
    "seed": (small_model, {}, {1: 5}),
    "model": (lambda: nn.Linear(20, 3 + dist.get_rank()), {}, {}),
    "frozen parameter": (lambda: small_model()[0].requires_grad_(dist.get_rank() == 0), {}, {}),
}


def attach_differently():
    """Each way to disagree: what rank 1 of 3 does otherwise; returns the error messages."""
    rank = dist.get_rank()
    errors = {}
    for name, (make_model, plans, seeds) in DIFFERENCES.items():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            plan, seed = plans.get(int(rank == 1), CLIP), seeds.get(rank, 0)
            tg.attach(model, optimizer, plan, seed=seed, collective=TorchCollective())
        except tg.RankMismatchError as error:
            errors[name] = str(error)
    return errors


def test_ranks_that_disagree_get_one_error_each():
    by_rank = run_ranks(3, attach_differently)
    part = {"empty plan": "plan", "model": "parameters", "frozen parameter": "parameters"}
    for rank, errors in enumerate(by_rank):
        assert list(errors) == list(DIFFERENCES)
        for name, message in errors.items():
            assert f"{part.get(name, name)} differ on rank 1" in message
            assert f"Rank {rank} has" in message


def refusals():
    """Wrappers and plans that cannot work, with the words that the error must hold."""
    accumulate, compress = tg.Plan(accumulate=tg.Accumulate(2)), tg.Plan(compress=tg.Compress(tg.codecs.Cast()))
    split = tg.Plan(accumulate=tg.Accumulate(2, on_oom="split"))
    static = DistributedDataParallel(small_model(), static_graph=True)
    partly = small_model()
    torch.distributed.fsdp.fully_shard(partly[3])
    cases = {
        "plain": (small_model(), CLIP, "2 processes run.*never be synchronised"),
        "static": (static, accumulate, "static_graph"),
        "static compressed": (static, compress, "static_graph"),
        "fsdp2 run again": (wrap(small_model(), "fsdp2"), split, r'on_oom="split".*DistributedDataParallel'),
        "partly sharded": (partly, CLIP, "'3' inside the model is in FSDP.*Wrap the whole model"),
        "partly ddp": (nn.Sequential(DistributedDataParallel(small_model())), CLIP, "'0' inside the model"),
    }
    messages = {}
    for name, (model, plan, words) in cases.items():
        with pytest.raises(tg.UnsupportedError, match=words) as error:
            tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
        messages[name] = str(error.value)
    return messages


def test_what_cannot_work_is_refused_on_every_rank():
    first, second = run_ranks(2, refusals)
    assert list(first) == list(second)


KINDS = ("ddp", "fsdp2")


def poison_rank_1():
    """NaN in rank 1's second window, under wrappers that reduce by themselves and under the explicit mode."""
    results = {}
    for kind, compress in (*((kind, None) for kind in KINDS), ("ddp", tg.Compress(tg.codecs.Cast()))):
        for policy in ("skip", "raise"):
            model = wrap(small_model(), kind)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
            plan = tg.Plan(accumulate=tg.Accumulate(2), compress=compress, guard=tg.Guard(policy))
            pipe = tg.attach(model, optimizer, plan)
            outcomes, before = [], []
            for index, window in enumerate(pipe.windows([torch.ones(2, 20)] * 6)):
                for batch in window:
                    poison = float("nan") if index == 1 and dist.get_rank() == 1 else 1.0
                    pipe.backward((model(batch) * poison).square().mean())
                before = [full(p) for p in model.parameters()]
                try:
                    outcomes.append(pipe.step().skip_reason)
                except tg.NonFiniteGradientError as error:
                    outcomes.append(str(error))
                if outcomes[-1] is not None:
                    outcomes.append(all(map(torch.equal, before, [full(p) for p in model.parameters()])))
            results[kind, compress is not None, policy] = outcomes
    return results


def test_nan_on_one_rank_is_skipped_or_raised_on_all():
    for results in run_ranks(2, poison_rank_1):
        for (kind, explicit, policy), outcomes in results.items():
            applied, seen, unchanged, applied_again = outcomes
            assert applied is applied_again is None, (kind, outcomes)
            assert unchanged
            if policy == "skip":
                assert seen == "nonfinite"
            else:
                assert "inf or NaN in the gradient of" in seen
                # Once a wrapper has summed, nobody knows where it came from.
                assert ("on rank 1)" if explicit else "on rank 0, 1)") in seen


def padding_on_rank_1():
    """Rank 1's first micro-batch is padding and its mean loss 0 / 0; returns the first window's gradient norms."""
    norms = {}
    for kind, sync in [(kind, sync) for kind in KINDS for sync in ("last", "every")]:
        model = wrap(small_model(), kind)
        plan = tg.Plan(accumulate=tg.Accumulate(2, sync=sync))
        pipe = tg.attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), plan, weight=lambda batch: float(batch[1].sum())
        )
        mask = torch.ones(3)
        batches = [(torch.full((3, 20), 0.1 * (index + 1)), mask) for index in range(2)]
        if dist.get_rank() == 1:
            batches[0] = (batches[0][0], torch.zeros(3))
        window = next(pipe.windows(batches))
        for inputs, weight in window:
            pipe.backward((model(inputs).square().mean(dim=1) * weight).sum() / weight.sum())
        norms[kind, sync] = pipe.step().grad_norm
    return norms


def test_padding_counts_exactly_zero_under_every_wrapper():
    model = small_model().double()
    inputs = torch.cat([torch.full((3, 20), value, dtype=torch.float64) for value in (0.1, 0.2, 0.2)])
    model(inputs).square().mean(dim=1).mean().backward()
    exact = float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
    for norms in run_ranks(2, padding_on_rank_1):
        for key, norm in norms.items():
            assert norm == pytest.approx(exact, rel=1e-6), key


def reset_in_mid_window():
    """After half a window of huge gradients, load a fresh state and train; returns whether it left a trace."""
    traces = {}
    for kind, sync in [(kind, sync) for kind in KINDS for sync in ("last", "every")]:
        weights = []
        for disturbed in (False, True):
            model = wrap(small_model(), kind)
            plan = tg.Plan(accumulate=tg.Accumulate(2, sync=sync))
            pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
            if disturbed:
                fresh = pipe.state_dict()
                for batch in next(pipe.windows([torch.ones(2, 20)] * 2)):
                    pipe.backward(model(batch * 100).square().sum())
                    break
                pipe.load_state_dict(fresh)
            for window in pipe.windows([torch.ones(2, 20)] * 2):
                for batch in window:
                    pipe.backward(model(batch).square().mean())
                pipe.step()
            weights.append([full(p) for p in model.parameters()])
        traces[kind, sync] = not all(map(torch.equal, *weights))
    return traces


def test_loading_a_state_in_mid_window_leaves_no_trace():
    for traces in run_ranks(2, reset_in_mid_window):
        assert not any(traces.values()), traces
