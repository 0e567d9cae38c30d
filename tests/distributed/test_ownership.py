"""Changed gradients are noticed under every wrapper, on every rank; what wrappers do by themselves is no change."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from support.ranks import run_ranks
from support.waiting import patience
from support.wrapping import ragged_batches, small_model, wrap

K = 3
SENT = tg.codecs.Cast("float32")


def ddp(**settings):
    return lambda: DistributedDataParallel(small_model(), bucket_cap_mb=0.002, **settings)


def mixed():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = small_model()
    fully_shard(model[3], mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def plan(sync="last", **parts):
    return tg.Plan(accumulate=tg.Accumulate(K, sync=sync), **parts)


def compress(overlap="none"):
    return tg.Compress(SENT, feedback=tg.ErrorFeedback(), overlap=overlap)


VIEWS = {"gradient_as_bucket_view": True}
MODES = {
    "ddp": (ddp(), plan()),
    "ddp views": (ddp(**VIEWS), plan()),
    "ddp every": (ddp(), plan("every")),
    "ddp every views": (ddp(**VIEWS), plan("every")),
    "ddp every views unused": (ddp(**VIEWS, find_unused_parameters=True), plan("every")),
    "ddp every views static": (ddp(**VIEWS, static_graph=True), plan("every")),
    "ddp every views static unused": (
        ddp(**VIEWS, static_graph=True, find_unused_parameters=True),
        plan("every"),
    ),
    "ddp compiled": (lambda: torch.compile(DistributedDataParallel(small_model()), backend="aot_eager"), plan()),
    "ddp bfloat16": (lambda: DistributedDataParallel(small_model().bfloat16()), plan()),
    "explicit": (ddp(), plan(compress=compress())),
    "explicit views": (ddp(**VIEWS), plan(compress=compress())),
    "hook": (ddp(), plan(compress=compress("backward"))),
    "hook views": (ddp(**VIEWS), plan(compress=compress("backward"))),
    "hook zero": (ddp(**VIEWS), plan(compress=compress("backward"), guard=tg.Guard("zero"))),
    "fsdp2 last": (lambda: wrap(small_model(), "fsdp2"), plan()),
    "fsdp2 every": (lambda: wrap(small_model(), "fsdp2"), plan("every")),
    "fsdp2 last bfloat16": (mixed, plan()),
    "fsdp2 compress": (lambda: wrap(small_model(), "fsdp2"), plan(compress=compress("auto"))),
}


def cleared(model, optimizer):
    optimizer.zero_grad()


def filled(model, optimizer):
    optimizer.zero_grad(set_to_none=False)


def clipped(model, optimizer):
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


def edited(model, optimizer):
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.5)


CHANGES = {"cleared": cleared, "filled": filled, "clipped": clipped, "edited": edited}


class Tried:
    """One model in one mode."""

    def __init__(self, mode):
        make, plan = MODES[mode]
        self.model = make()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.pipe = tg.attach(self.model, self.optimizer, plan)
        dtype = next(self.model.parameters()).dtype
        self.batches = [(inputs.to(dtype), labels) for inputs, labels in ragged_batches(0)[:K]]

    def window(self, change=None, after=K):
        """The record, or the error; the window is left then."""
        for window in self.pipe.windows(self.batches):
            try:
                for index, (inputs, labels) in enumerate(window, start=1):
                    self.pipe.backward(F.cross_entropy(self.model(inputs).float(), labels))
                    if change is not None and index == after:
                        change(self.model, self.optimizer)
                return self.pipe.step()
            except (tg.UsageError, tg.RankMismatchError) as error:
                self.pipe.abandon()
                return str(error)
        return None


def changed_in(mode):
    """What came of windows that nobody, and then each change, disturbs."""
    tried = Tried(mode)
    found = {"clean": [tried.window().skipped for _ in range(4)]}
    for name, change in CHANGES.items():
        found[name] = tried.window(change)
    found["middle"] = {name: tried.window(change, after=1) for name, change in CHANGES.items()}
    found["clean again"] = [tried.window().skipped for _ in range(2)]
    found["first window"] = Tried(mode).window(clipped)
    return found


# Where gradients are in the middle of a window, out of the loop's reach: nothing that it does there has any effect.
HIDDEN = {"ddp bfloat16", "fsdp2 last", "fsdp2 last bfloat16", "fsdp2 compress"}


# What they cross, others of the quick run have one by one.
LATER = {"ddp every", "ddp every views unused", "ddp every views static", "hook views"}


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.slow] if mode in LATER else []) for mode in MODES]
)
def test_a_change_is_an_error_on_every_rank(mode):
    for found in run_ranks(2, changed_in, mode, timeout_seconds=patience(20)):
        assert found["clean"] == [False] * 4
        assert found["clean again"] == [False] * 2
        for name in CHANGES if mode != "ddp bfloat16" else ():
            assert "changed from outside in the middle of a window" in found[name], name
        for name, outcome in found["middle"].items() if mode not in HIDDEN else ():
            assert "changed from outside in the middle of a window" in outcome, name
        if mode in HIDDEN:
            for name, outcome in found["middle"].items():
                assert "changed from outside" in outcome if isinstance(outcome, str) else not outcome.skipped, name


VOTING = ("explicit", "hook", "fsdp2 every", "fsdp2 last", "fsdp2 last bfloat16", "fsdp2 compress")


def grown(model, optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def alone(change):
    """Only rank 1 makes the change, after the window's last backward."""

    def changes(model, optimizer):
        if dist.get_rank() == 1:
            change(model, optimizer)

    found = {}
    for mode in VOTING:
        tried = Tried(mode)
        error = tried.window(changes)
        del tried.optimizer.param_groups[1:]
        found[mode] = error, [tried.window().skipped for _ in range(2)]
    return found


@pytest.mark.parametrize(("change", "words"), [(cleared, ("'0.weight'", "cleared")), (grown, ("did not see",))])
def test_where_ranks_vote_a_change_on_one_rank_is_an_error_on_all(change, words):
    other, changed = run_ranks(2, alone, change, timeout_seconds=patience(20))
    for mode in {*VOTING} - {"hook"}:
        assert "another rank has failed before this step" in other[mode][0], mode
    assert "rank 1 has dropped the step after an error of its own" in other["hook"][0]
    for mode, (error, clean) in changed.items():
        assert all(word in error for word in words), mode
        assert clean == [False, False]
        assert other[mode][1] == [False, False]
