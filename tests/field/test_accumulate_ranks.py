"""A5, A6, A8: accumulation on two gloo ranks."""

from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from field.gradients import (
    Recorder,
    exact_gradient,
    flat_grad,
    gain,
    linear_model,
    mean_square,
    regression_batches,
    relative_error,
)
from support.ranks import run_ranks

RANKS = 2
MICRO_BATCHES = 3


def batches_of(rank, num_batches=MICRO_BATCHES):
    return regression_batches(num_batches, seed=rank)


def exact(num_batches=MICRO_BATCHES):
    everyone = [batch for rank in range(RANKS) for batch in batches_of(rank, num_batches)]
    return exact_gradient(linear_model(), everyone)


def with_tightgrad(model, batches, plan):
    """The gradient of the one window, and its record."""
    optimizer = Recorder(model)
    pipe = tg.attach(model, optimizer, plan)
    (record,) = [pipe.run(window, lambda batch: mean_square(model, batch)) for window in pipe.windows(batches)]
    return optimizer.gradients[0], record


# A5 ------------------------------------------------------------------------------------------------------------------
def accumulate_on_a_static_graph():
    model = DistributedDataParallel(linear_model(), static_graph=True)
    *first, last = batches_of(dist.get_rank())
    try:
        for _ in range(2):
            model.zero_grad()
            with model.no_sync():
                for batch in first:
                    (mean_square(model, batch) / MICRO_BATCHES).backward()
            (mean_square(model, last) / MICRO_BATCHES).backward()
    except RuntimeError as error:
        return type(error).__name__
    return flat_grad(model)


def tightgrad_on_a_static_graph():
    batches = batches_of(dist.get_rank())
    model = DistributedDataParallel(linear_model(), static_graph=True)
    try:
        with_tightgrad(model, batches, tg.Plan(accumulate=tg.Accumulate(MICRO_BATCHES)))
        refusal = ""
    except tg.UnsupportedError as error:
        refusal = str(error)
    plan = tg.Plan(accumulate=tg.Accumulate(MICRO_BATCHES, sync="every"))
    return refusal, with_tightgrad(model, batches, plan)[0]


def test_a5_static_graph(field_row):
    peer = run_ranks(RANKS, accumulate_on_a_static_graph)
    ours = run_ranks(RANKS, tightgrad_on_a_static_graph)
    for refusal, gradient in ours:
        assert "static_graph" in refusal
        assert 'sync="every"' in refusal, "the error names what works"
        assert relative_error(gradient, exact()) < 1e-6
    crashed = isinstance(peer[0], str)
    field_row(
        "A5 static-graph DDP with no_sync",
        "torch",
        peer[0] if crashed else f"error {relative_error(peer[0], exact()):.0e}",
        f'UnsupportedError names sync="every": error {relative_error(ours[0][1], exact()):.0e}',
        peer_is_wrong=crashed,
    )


# A6 ------------------------------------------------------------------------------------------------------------------
def backward_outside():
    model = DistributedDataParallel(linear_model())
    with model.no_sync():
        loss = mean_square(model, batches_of(dist.get_rank(), 1)[0])
    loss.backward()
    return flat_grad(model)


def tightgrad_encloses_both():
    model = DistributedDataParallel(linear_model())
    optimizer = Recorder(model)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(MICRO_BATCHES)))
    for window in pipe.windows(batches_of(dist.get_rank())):
        for batch in window:
            pipe.backward(mean_square(model, batch))
        pipe.step()
    return optimizer.gradients[0]


def test_a6_backward_outside_no_sync(field_row):
    peer = run_ranks(RANKS, backward_outside)
    ours = run_ranks(RANKS, tightgrad_encloses_both)
    assert torch.equal(ours[0], ours[1])
    assert relative_error(ours[0], exact()) < 1e-6
    apart = relative_error(peer[1], peer[0].double())
    field_row(
        "A6 forward in no_sync, backward outside",
        "torch",
        f"ranks {apart:.0%} apart, no error",
        f"{relative_error(ours[1], ours[0].double()):.0%} apart",
        peer_is_wrong=not torch.equal(peer[0], peer[1]),
    )


# A8 ------------------------------------------------------------------------------------------------------------------
EQUAL = 4  # micro-batches of the same data


def equal_batches():
    return batches_of(dist.get_rank(), 1) * EQUAL


def hook_without_no_sync():
    """What torch's float16 hook is given in one optimizer step of a loop without `no_sync`."""
    model = DistributedDataParallel(linear_model())
    given, calls = dict.fromkeys(model.parameters(), 0), []

    def hook(state, bucket):
        calls.append(bucket.index())
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            given[parameter] = given[parameter] + gradient
        return fp16_compress_hook(state, bucket)

    model.register_comm_hook(None, hook)
    for batch in equal_batches():
        (mean_square(model, batch) / EQUAL).backward()
    return torch.cat([total.flatten() for total in given.values()]), len(calls)


def tightgrad_compresses_once():
    given, calls = {}, []
    encode_all = tg.codecs.Cast.encode_all

    def watched(codec, flats, specs, generator_of):
        for flat, spec in zip(flats, specs, strict=True):
            given[spec.name] = given.get(spec.name, 0) + flat
            calls.append(spec.name)
        return encode_all(codec, flats, specs, generator_of)

    model = DistributedDataParallel(linear_model())
    plan = tg.Plan(
        accumulate=tg.Accumulate(EQUAL), compress=tg.Compress(tg.codecs.Cast("float16"), tg.reducers.Gather())
    )
    with mock.patch.object(tg.codecs.Cast, "encode_all", watched):
        gradient, _ = with_tightgrad(model, equal_batches(), plan)
    names = [name for name, _ in model.module.named_parameters()]
    return torch.cat([given[name] for name in names]), len(calls) // len(names), gradient


def test_a8_hook_without_no_sync(field_row):
    """What goes into the compressor in one step, averaged over ranks, against the step's gradient."""
    peer = run_ranks(RANKS, hook_without_no_sync)
    ours = run_ranks(RANKS, tightgrad_compresses_once)
    gradient = exact(1)
    peer_mass = gain(sum(given for given, _ in peer) / RANKS, gradient)
    our_mass = gain(sum(given for given, _, _ in ours), gradient)  # already divided by the weight of all ranks
    peer_calls, our_calls = peer[0][1], ours[0][1]
    assert our_mass < 1.001
    assert our_mass > 0.999
    assert our_calls == 1
    assert relative_error(ours[0][2], gradient) < 2**-10
    field_row(
        f"A8 compressing hook without no_sync, K={EQUAL}",
        "torch",
        f"compresses {peer_mass:.2f}x the gradient in {peer_calls} calls",
        f"{our_mass:.2f}x in {our_calls}",
        peer_is_wrong=peer_mass > 2 and peer_calls == EQUAL,
    )
