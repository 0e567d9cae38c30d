"""What keeps a wrapper from summing gradients over ranks is told: a forward past it, `no_sync`, a frozen parameter."""

import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import debugging_hooks, default_hooks
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.waiting import patience
from support.wrapping import full, ragged_batches, small_model, wrap

K, WORLD = 2, 2
COMPRESS = tg.Compress(tg.codecs.Cast("float32"))


def plan(sync="auto", compress=None):
    return tg.Plan(accumulate=tg.Accumulate(K, sync=sync), clip=tg.clip.GlobalNorm(1e9), compress=compress)


class Loop:
    """One model, and what a window of it came to: whether it was skipped, or the error."""

    def __init__(self, model, a_plan):
        self.model = model
        self.pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), a_plan)

    def window(self, forward=None, before=lambda index: None):
        forward = forward or self.model
        try:
            for window in self.pipe.windows(ragged_batches(dist.get_rank())[:K]):
                for index, (inputs, labels) in enumerate(window):
                    before(index)
                    self.pipe.backward(F.cross_entropy(forward(inputs), labels))
                return self.pipe.step().skipped
        except tg.UsageError as error:
            self.pipe.abandon()
            return str(error)

    def weights(self):
        return [full(parameter) for parameter in self.model.parameters()]


def past_ddp(sync):
    """Forwards that go past the wrapper, and one in a micro-batch that need not be summed."""
    found = {}
    for name in ("module", "method", "compiled before", "no_sync", "first only"):
        net = small_model()
        loop = Loop(DistributedDataParallel(net), plan(sync))
        if name == "no_sync":
            with loop.model.no_sync():
                found[name] = loop.window()
        elif name == "first only":
            turns = iter([net, loop.model])
            found[name] = loop.window(lambda inputs, turns=turns: next(turns)(inputs))
        else:
            compiled = torch.compile(net, backend="eager") if name == "compiled before" else net
            found[name] = loop.window(net.forward if name == "method" else compiled)
        found[f"{name}, then right"] = loop.window()
    return found


@pytest.mark.parametrize("sync", ["last", "every"])
def test_a_forward_that_ddp_does_not_see(sync):
    for found in run_ranks(WORLD, past_ddp, sync, timeout_seconds=patience(30)):
        for name in ("module", "method", "compiled before"):
            assert "went past DistributedDataParallel" in found[name], name
        assert "went under no_sync()" in found["no_sync"]
        if sync == "last":
            assert found["first only"] is False
        else:
            assert "went past DistributedDataParallel" in found["first only"]
        assert all(found[name] is False for name in found if name.endswith("then right"))


def past_fsdp(sync):
    loop = Loop(wrap(small_model(), "fsdp2"), plan(sync))
    told = loop.window(before=lambda index: loop.model.set_requires_gradient_sync(False))
    return told, Loop(wrap(small_model(), "fsdp2"), plan(sync)).window()


@pytest.mark.parametrize("sync", ["last", "every"])
def test_a_backward_that_fsdp2_does_not_reduce(sync):
    for told, right in run_ranks(WORLD, past_fsdp, sync, timeout_seconds=patience(30)):
        assert "set_requires_gradient_sync(False)" in told
        assert right is False


def divided_otherwise(compress):
    """torch divides by another number than that of ranks: before `attach`, later, by the right one, in one module."""
    found = {}
    for case in ("before", "after", "later", "right", "one module"):
        model = wrap(small_model(), "fsdp2")
        modules = [model[3]] if case == "one module" else [model, model[3]]

        def divide(number, modules=modules):
            for module in modules:
                module.set_force_sum_reduction_for_comms(True)  # gloo has no other way
                module.set_gradient_divide_factor(number)

        if case in ("before", "right"):
            divide(1.0 if case == "before" else float(WORLD))
        try:
            loop = Loop(model, plan(compress=compress))
        except tg.UsageError as error:
            found[case] = str(error)
            continue
        if case == "later":
            assert loop.window() is False
        if case in ("after", "later", "one module"):
            divide(4.0)
        found[case] = loop.window()
    return found


@pytest.mark.parametrize("compress", [None, COMPRESS], ids=["fsdp2", "compress"])
def test_sums_that_fsdp2_divides_by_another_number(compress):
    for found in run_ranks(WORLD, divided_otherwise, compress, timeout_seconds=patience(30)):
        wrong = {case: said for case, said in found.items() if said is not False}
        assert set(wrong) == {"after", "later", "one module"} | ({"before"} if compress is None else set())
        times = WORLD / 4 if compress is None else 1 / 4
        assert "set_gradient_divide_factor(4) was called on the model" in wrong["later"]
        assert f"{times:g} times what they should be" in wrong["later"]
        assert "Leave the call out" in wrong["one module"]


def summing(state, bucket):
    reduced = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return reduced.then(lambda done: done.value()[0])


def hooked(compress):
    """Warnings under communication hooks: torch's own, which give the mean, one of the loop's, and one that sends
    nothing, before and after `attach`.
    """
    found = {}
    for hook in (default_hooks.fp16_compress_hook, summing, debugging_hooks.noop_hook):
        for is_first in (True, False):
            model = DistributedDataParallel(small_model())
            if is_first:
                model.register_comm_hook(None, hook)
            loop = Loop(model, plan(compress=compress))
            if not is_first:
                model.register_comm_hook(None, hook)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                loop.window()
            found[hook.__name__, is_first] = [(str(one.message), one.filename) for one in caught]
    return found


@pytest.mark.parametrize("compress", [None, COMPRESS], ids=["ddp", "compress"])
def test_hooks_that_may_not_give_the_mean(compress):
    on_0, on_1 = run_ranks(WORLD, hooked, compress, timeout_seconds=patience(30))
    assert not any(on_1.values())
    for (name, _), said in on_0.items():
        is_told = compress is None and name != "fp16_compress_hook"
        assert [f"({name})" in text and file == __file__ for text, file in said] == [True] * is_told


def attached_twice(overlap):
    """The messages of a pipeline without compression on a module whose first pipeline compressed in its backward."""
    model = DistributedDataParallel(small_model())
    compress = tg.Compress(tg.codecs.IntBlock(8), tg.reducers.TwoShot(), overlap=overlap)
    tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tg.Plan(compress=compress)).close()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Loop(model, plan()).window()
    return [str(one.message) for one in said]


def test_the_hook_that_a_closed_pipeline_leaves_is_no_hook_of_the_users():
    assert run_ranks(WORLD, attached_twice, "backward", timeout_seconds=patience(30)) == [[], []]


WRAPPERS = {
    "ddp": lambda: DistributedDataParallel(small_model()),
    "ddp unused": lambda: DistributedDataParallel(small_model(), find_unused_parameters=True),
    "fsdp2": lambda: wrap(small_model(), "fsdp2"),
}


def frozen_later(wrapper, compress, windows_before):
    loop = Loop(WRAPPERS[wrapper](), plan(compress=compress))
    for _ in range(windows_before):
        loop.window()
    first = next(loop.model.parameters())
    first.requires_grad_(False)
    return loop.window(), loop.weights()


@pytest.mark.parametrize("windows_before", [0, 3])
@pytest.mark.parametrize(
    ("wrapper", "compress", "is_told"),
    [
        ("ddp", None, True),
        ("ddp unused", None, False),
        ("ddp", COMPRESS, False),
        ("fsdp2", None, False),
        ("fsdp2", COMPRESS, True),
    ],
)
def test_a_parameter_that_is_frozen_between_windows(wrapper, compress, is_told, windows_before):
    results = run_ranks(WORLD, frozen_later, wrapper, compress, windows_before, timeout_seconds=patience(30))
    for told, weights in results:
        assert ("was frozen after the wrapper was built" in told) if is_told else told is False
        assert all(map(torch.equal, weights, results[0][1]))


def test_one_rank_has_nobody_to_wait_for():
    ((told, _),) = run_ranks(1, frozen_later, "ddp", None, 3, timeout_seconds=patience(30))
    assert told is False


def test_a_plain_module_may_be_frozen_between_windows_and_not_within_one():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan())
    kept = model[0].weight.detach().clone()
    model[0].requires_grad_(False)
    windows = iter(pipe.windows([torch.ones(2, 3)] * 2 * K))
    for batch in next(windows):
        pipe.backward(model(batch).square().mean())
    assert not pipe.step().skipped
    window = iter(next(windows))
    pipe.backward(model(next(window)).square().mean())
    model[1].bias.requires_grad_(False)
    loss = model(next(window)).square().mean()
    with pytest.raises(tg.UsageError, match=r"'1.bias' was frozen or unfrozen between two backwards of one window"):
        pipe.backward(loss)
    assert torch.equal(model[0].weight, kept)
