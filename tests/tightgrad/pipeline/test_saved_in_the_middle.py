"""A checkpoint holds a state from which the run goes on: none is taken in the middle of a backward or of a step, or
after one that was cut short, by Ctrl-C for example; where it can be taken, the run that goes on is the same.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightgrad as tg

K = 4
GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [torch.randn(2 + i % 3, 6, generator=GENERATOR, dtype=torch.float64) for i in range(2 * K)]
MIDDLE = "under way, so there is no state to save now"


class Calls(torch.autograd.Function):
    """Calls a function in its backward, as a hook or a signal handler may."""

    @staticmethod
    def forward(ctx, value, function):
        ctx.function = function
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.function()
        return gradient, None


class Loop:
    """Trains, and calls `act` at the `at`-th time that it comes by `place`."""

    def __init__(self, place=None, at=0, act=lambda loop: None, plan=None, **settings):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Linear(6, 3).double()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.place, self.at, self.act = place, at, act
        self.optimizer.register_step_pre_hook(lambda *_: self.pass_by("optimizer"))
        self.optimizer.register_step_post_hook(lambda *_: self.pass_by("stepped"))
        plan = plan or tg.Plan(accumulate=tg.Accumulate(K), clip=tg.clip.GlobalNorm(0.5))
        edit = {"before_clip": lambda grads: self.pass_by("before_clip")}
        self.pipe = tg.attach(self.model, self.optimizer, plan, **edit, **settings)

    def pass_by(self, place):
        self.at -= place == self.place
        if place == self.place and self.at == -1:
            self.act(self)

    def encode(self, batch):
        self.pass_by("forward")
        return Calls.apply(self.model(batch), lambda: self.pass_by("backward"))

    def loss_of(self, batch):
        return self.encode(batch).square().mean()

    def train(self, batches=BATCHES):
        for window in self.pipe.windows(batches):
            for batch in window:
                self.pipe.backward(self.loss_of(batch))
            self.pipe.step()
        return self

    def run(self, batches=BATCHES):
        for window in self.pipe.windows(batches):
            self.pipe.run(window, self.loss_of)

    def run_cached(self, batches=BATCHES):
        for window in self.pipe.windows(batches):
            self.pipe.run_cached(window, self.encode, lambda z: F.cross_entropy(z @ z.T, torch.arange(len(z))))

    def save(self, folder):
        return tg.save(folder, self.model, self.optimizer, self.pipe)

    def resumed(self, folder, batches=BATCHES):
        first = tg.load(folder, self.model, self.optimizer, self.pipe)
        return self.train(itertools.islice(batches, first, None))


def interrupt(loop):
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["backward", "optimizer", "stepped", "before_clip"])
@pytest.mark.parametrize("state", [lambda loop, folder: loop.save(folder), lambda loop, _: loop.pipe.state_dict()])
def test_in_the_middle_there_is_none(tmp_path, place, state):
    with pytest.raises(tg.UsageError, match=f"{MIDDLE}.*another thread set a flag, and save in the loop"):
        Loop(place, 1, lambda loop: state(loop, tmp_path)).train()


def test_a_scheduler_s_step_is_a_part_of_the_step():
    loop = Loop()
    scheduler = torch.optim.lr_scheduler.LambdaLR(loop.optimizer, lambda _: 1.0)
    loop.pipe = tg.attach(loop.model, loop.optimizer, loop.pipe.plan, scheduler=scheduler)
    scheduler.step = lambda: loop.pipe.state_dict()
    with pytest.raises(tg.ConfigError, match=MIDDLE):
        loop.train()


OOM = tg.Plan(accumulate=tg.Accumulate(K, on_oom="split"))


@pytest.mark.parametrize(
    ("place", "at", "plan", "way", "what"),
    [
        ("backward", K + 1, None, Loop.train, "the backward of micro-batch 1 of 4"),
        ("before_clip", 1, None, Loop.train, r"pipe.step\(\)"),
        ("optimizer", 1, None, Loop.train, r"pipe.step\(\)"),
        ("stepped", 1, None, Loop.train, r"pipe.step\(\)"),
        ("backward", K + 1, None, Loop.run, "the backward of micro-batch 1 of 4"),
        ("forward", K + 2, OOM, Loop.run, r"pipe.run\(\)"),
        ("backward", K + 2, OOM, Loop.run, r"pipe.run\(\)"),
        ("forward", 3 * K + 2, None, Loop.run_cached, r"pipe.run_cached\(\)"),
        ("backward", K + 2, None, Loop.run_cached, r"pipe.run_cached\(\)"),
    ],
)
def test_after_an_interrupt_in_the_middle_the_window_is_dropped_first(tmp_path, place, at, plan, way, what):
    loop = Loop(place, at, interrupt, plan)
    with pytest.raises(KeyboardInterrupt):
        way(loop)
    with pytest.raises(tg.UsageError, match=rf"^{what} has raised KeyboardInterrupt.*to drop it before you save"):
        loop.save(tmp_path)
    loop.pipe.abandon()
    loop.save(tmp_path)
    other = Loop(plan=plan)
    assert K < tg.load(tmp_path, other.model, other.optimizer, other.pipe) <= 2 * K  # what was fetched, which is told


@pytest.mark.parametrize(("place", "at"), [("forward", K + 2), ("forward", K)])
def test_after_an_interrupt_between_backwards_the_run_goes_on_exactly(tmp_path, place, at):
    loop = Loop(place, at, interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.train()
    loop.save(tmp_path)
    again = Loop().resumed(tmp_path)
    assert torch.equal(again.model.weight, Loop().train().model.weight)


def test_a_window_that_was_run_in_part_is_not_run_again():
    def fail(loop):
        raise ValueError("bad sample")

    loop = Loop("forward", 2, fail, OOM)
    window = next(loop.pipe.windows(BATCHES))
    with pytest.raises(ValueError, match="bad sample"):
        loop.pipe.run(window, loop.loss_of)
    with pytest.raises(tg.UsageError, match=r"pipe.run\(\) has raised ValueError"):
        loop.pipe.run(window, loop.loss_of)


def test_going_back_to_a_checkpoint_within_an_epoch_does_not_repeat_the_next_epochs_numbers(tmp_path):
    loop, drawn = Loop(), []
    torch.manual_seed(3)
    for epoch in range(2):
        for number, window in enumerate(loop.pipe.windows(BATCHES)):
            for batch in window:
                loop.pipe.backward(loop.loss_of(batch))
            loop.pipe.step()
            drawn.append(float(torch.rand(())))
            if epoch == 0 and number == 0:
                loop.save(tmp_path)
                tg.load(tmp_path, loop.model, loop.optimizer, loop.pipe)
    assert len(set(drawn)) == 4
