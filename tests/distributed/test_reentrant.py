"""Backwards inside a backward under DDP: right, or an error on every rank. No gradient is taken before it is whole."""

import re

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import tightgrad as tg
from support.ranks import run_ranks

CAST = tg.codecs.Cast("float32")
SMALL_BUCKETS = 0.0001  # MB: each parameter in its own
STEPS = 3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)


class Ends(Net):
    """The first gradients come inside an inner backward, the last ones outside."""

    def forward(self, inputs):
        hidden = checkpoint(self.second, self.first(inputs), use_reentrant=True)
        return checkpoint(self.last, hidden, use_reentrant=True)


class Whole(Net):
    """All gradients come inside one inner backward."""

    def forward(self, inputs):
        return checkpoint(lambda x: self.last(self.second(self.first(x))), inputs, use_reentrant=True)


class Sequence(Net):
    """Two segments, of which torch runs the last one without a checkpoint."""

    def forward(self, inputs):
        return checkpoint_sequential([self.first, self.second, self.last], 2, inputs, use_reentrant=True)


class Nested(Net):
    """A checkpoint inside a checkpoint."""

    def forward(self, inputs):
        def inner(x):
            return checkpoint(self.second, self.first(x), use_reentrant=True)

        return self.last(checkpoint(inner, inputs, use_reentrant=True))


class Shared(Net):
    """A layer used twice, as tied weights are, with no inner backward."""

    def forward(self, inputs):
        return self.last(self.first(self.second(self.first(inputs))))


class SharedAnew(Net):
    """The same with the checkpointing that torch advises."""

    def forward(self, inputs):
        hidden = checkpoint(self.first, inputs, use_reentrant=False)
        return self.last(self.second(checkpoint(self.first, hidden, use_reentrant=False)))


class Twice(Net):
    """A layer in two inner backwards: what the second one adds comes after DDP has reduced everything."""

    def forward(self, inputs):
        hidden = checkpoint(self.first, inputs, use_reentrant=True)
        return self.last(self.second(checkpoint(self.first, hidden, use_reentrant=True)))


class TwiceEarly(Net):
    """The same, while another layer is still to come: torch notices this one."""

    def forward(self, inputs):
        hidden = checkpoint(self.first, self.second(inputs), use_reentrant=True)
        return self.last(checkpoint(self.first, hidden, use_reentrant=True))


class OutsideToo(Net):
    """A layer in an inner backward and outside of it."""

    def forward(self, inputs):
        hidden = checkpoint(self.first, self.first(inputs), use_reentrant=True)
        return checkpoint(self.last, self.second(hidden), use_reentrant=True)


RIGHT = (Ends, Whole, Sequence, Nested, Shared, SharedAnew)
WRONG = (Twice, OutsideToo, TwiceEarly)
KINDS = ("wrapper", "none", "backward", "hook")


def data(rank, index):
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(10 * rank + index))


def gradients(model):
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def by_hook(model, module, rank):
    tg.ddp_comm_hook(model, tg.Compress(CAST))
    found = []
    for _ in range(STEPS):
        model.zero_grad()
        model(data(rank, 0).requires_grad_()).square().mean().backward()
        found.append(gradients(module))
    return found


def by_attach(model, module, rank, kind, micro_batches):
    found = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: found.append(gradients(module)))
    compress = None if kind == "wrapper" else tg.Compress(CAST, overlap=kind)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(micro_batches), compress=compress))
    for _ in range(STEPS):
        for window in pipe.windows([data(rank, index) for index in range(micro_batches)]):
            for inputs in window:
                pipe.backward(model(inputs.requires_grad_()).square().mean())
            pipe.step()
    return found


def trained(net, kind, micro_batches, bucket_cap_mb, **arguments):
    module = net()
    model = DistributedDataParallel(module, bucket_cap_mb=bucket_cap_mb, **arguments)
    rank = dist.get_rank()
    try:
        return by_hook(model, module, rank) if kind == "hook" else by_attach(model, module, rank, kind, micro_batches)
    except RuntimeError as error:  # ours is one too; torch's own says "marked as ready twice", where it notices
        return str(error)


def everything(nets, caps_in_turn):
    results = {}
    for row, net in enumerate(nets):
        for column, kind in enumerate(KINDS):
            for micro_batches in (1, 2) if kind != "hook" else (1,):
                caps = (25, SMALL_BUCKETS)
                for cap in [caps[(row + column + micro_batches) % 2]] if caps_in_turn else caps:
                    case = (net.__name__, kind, micro_batches, cap)
                    results[case] = trained(net, kind, micro_batches, cap)
        results[net.__name__, "backward", 1, "views"] = trained(net, "backward", 1, 25, gradient_as_bucket_view=True)
    return results


def expected(net, micro_batches, ranks=2):
    model = net().double()
    for rank in range(ranks):
        for index in range(micro_batches):
            loss = model(data(rank, index).double().requires_grad_()).square().mean()
            (loss / (ranks * micro_batches)).backward()
    return gradients(model)


caps_in_turn = pytest.mark.parametrize("caps_in_turn", [True, pytest.param(False, marks=pytest.mark.slow)])


@caps_in_turn
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_each_layer_once_is_right_and_so_are_tied_layers(caps_in_turn):
    first, second = run_ranks(2, everything, RIGHT, caps_in_turn)
    by_name = {net.__name__: net for net in RIGHT}
    for case, steps in first.items():
        assert not isinstance(steps, str), (case, steps)
        assert len(steps) == STEPS
        wanted = expected(by_name[case[0]], case[2])
        for step, other in zip(steps, second[case], strict=True):
            for grad, same, exact in zip(step, other, wanted, strict=True):
                assert torch.equal(grad, same), case
                torch.testing.assert_close(grad.double(), exact, rtol=1e-5, atol=1e-6, msg=str(case))


@caps_in_turn
def test_a_gradient_that_grows_after_it_was_reduced_is_an_error_on_every_rank(caps_in_turn):
    for rank in run_ranks(2, everything, WRONG, caps_in_turn):
        for case, found in rank.items():
            if case[1] == "none":
                assert not isinstance(found, str), "reduced after backward: right"
                continue
            assert isinstance(found, str), case
            assert "first." in found, (case, found)
            ours = re.search(r"became ready twice.*use_reentrant=True.*use_reentrant=False", found)
            assert ours or (case[0] == "TwiceEarly" and "has been marked as ready twice" in found), (case, found)
        by_name = {net.__name__: net for net in WRONG}
        for case in (case for case in rank if case[1] == "none"):
            for grad, exact in zip(rank[case][-1], expected(by_name[case[0]], case[2]), strict=True):
                torch.testing.assert_close(grad.double(), exact, rtol=1e-5, atol=1e-6)


def backward_again():
    """Over the graph that was kept, with the optimizer's step between or not, and through the module inside."""
    said = []
    for steps, inside in ((False, False), (True, False), (True, True), (False, True)):
        module = Shared()
        model = DistributedDataParallel(module)
        tg.ddp_comm_hook(model, tg.Compress(CAST))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = model(data(dist.get_rank(), 0)).square().mean()
        loss.backward(retain_graph=not steps)
        if steps:
            optimizer.step()
        again = module(data(0, 1)).square().mean() if inside or steps else loss
        try:
            again.backward()
            said.append("")
        except tg.UsageError as error:
            said.append(str(error))
    return said


def test_a_second_backward_over_one_graph_is_an_error_and_another_forwards_is_not():
    for said in run_ranks(2, backward_again):
        assert "a second backward over one graph (retain_graph=True)" in said[0]
        assert said[1:] == ["", "", ""]


def joined(counts):
    module = Shared()
    model = DistributedDataParallel(module)
    tg.ddp_comm_hook(model, tg.Compress(tg.codecs.IntBlock(8), feedback=tg.ErrorFeedback()))
    with pytest.raises(tg.UsageError, match=r"join\(\) cannot be had .*as many batches .*or use attach\(\)"):
        model.join()
    overlapped = DistributedDataParallel(Shared())
    optimizer = torch.optim.SGD(overlapped.parameters(), lr=0.1)
    pipe = tg.attach(overlapped, optimizer, tg.Plan(compress=tg.Compress(CAST, overlap="backward")))
    with pytest.raises(tg.UsageError, match=r"join\(\) cannot be had"):
        overlapped.join()
    del pipe
    return averaged_under_join(overlapped, counts)


def averaged_under_join(model, counts):
    """With the empty plan nobody is served any more, and DDP's own join is as without us."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tg.attach(model, optimizer, tg.Plan())
    with model.join():
        for index in range(counts[dist.get_rank()]):
            optimizer.zero_grad()
            model(data(0, index)).square().mean().backward()
            optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("counts", [(3, 5), (4, 4)])
def test_join_is_refused_where_a_hook_compresses(counts):
    first, second = run_ranks(2, joined, counts)
    assert all(map(torch.equal, first, second))
