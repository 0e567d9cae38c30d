"""Manual optimization: a step as people write it is right, or refused in Lightning's words before weights move."""

import pytest
import torch

import tightgrad as tg
from support.lightning_fits import FILTERS, Regression, close, fit, unmoved
from tightgrad.integrations.lightning import TightGrad

pytestmark = [pytest.mark.filterwarnings(text) for text in FILTERS]


class Manual(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def loss(self, batch):
        return Regression.training_step(self, batch, 0)


class Usual(Manual):
    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class Closure(Manual):
    def training_step(self, batch, index):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))

        optimizer.step(closure=closure)


class Toggled(Manual):
    def training_step(self, batch, index):
        optimizer = self.optimizers()
        self.toggle_optimizer(optimizer)
        Usual.training_step(self, batch, index)
        self.untoggle_optimizer(optimizer)


class Scheduled(Manual):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]

    def training_step(self, batch, index):
        Usual.training_step(self, batch, index)
        self.lr_schedulers().step()


class LeavesOut(Manual):
    """A batch without any backward is none, as in Lightning."""

    def training_step(self, batch, index):
        if index != 3:
            Usual.training_step(self, batch, index)


@pytest.mark.parametrize("kind", [Usual, Closure, Toggled, Scheduled, LeavesOut])
def test_it_does_what_it_does_in_lightning(kind):
    plain, tight, callback = kind(), kind(), TightGrad()
    fit(plain)
    fit(tight, [callback])
    assert callback.pipe.state.step == 8 - (kind is LeavesOut)
    assert close(tight, plain)


@pytest.mark.parametrize("kind", [Usual, Closure])
def test_a_window_of_several_batches(kind):
    plain, tight = Regression(), kind()
    fit(plain, accumulate_grad_batches=4)
    fit(tight, [TightGrad(tg.Plan(tg.Accumulate(4)))])
    assert close(tight, plain)


class EachFourth(Manual):
    """Steps when a window ends, and only then."""

    def training_step(self, batch, index):
        self.manual_backward(self.loss(batch))
        if (index + 1) % 4 == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()


def test_a_condition_that_is_true_where_windows_end():
    plain, tight = Regression(), EachFourth()
    fit(plain, accumulate_grad_batches=4)
    fit(tight, [TightGrad(tg.Plan(tg.Accumulate(4)))])
    assert close(tight, plain)


class Raw(Manual):
    def training_step(self, batch, index):
        self.manual_backward(self.loss(batch))
        self.optimizers(use_pl_optimizer=False).step()


class Direct(Manual):
    def training_step(self, batch, index):
        self.loss(batch).backward()
        self.optimizers().step()


class TwoLosses(Manual):
    def training_step(self, batch, index):
        self.manual_backward(self.loss(batch) / 2)
        self.manual_backward(self.loss(batch) / 2)
        self.optimizers().step()


class TwoSteps(Manual):
    """As of sharpness-aware minimisation."""

    def training_step(self, batch, index):
        Usual.training_step(self, batch, index)
        Usual.training_step(self, batch, index)


class StepsTwice(Manual):
    def training_step(self, batch, index):
        Usual.training_step(self, batch, index)
        self.optimizers().step()


class ClipsByHand(Manual):
    def training_step(self, batch, index):
        self.manual_backward(self.loss(batch))
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.05)
        self.optimizers().step()


class Misses(Manual):
    def training_step(self, batch, index):
        if index != 1:
            self.manual_backward(self.loss(batch))
        self.optimizers().step()


@pytest.mark.parametrize(
    ("kind", "steps", "text"),
    [
        (Raw, 1, r"Call self.optimizers\(\).step\(\), without use_pl_optimizer=False"),
        (
            Direct,
            1,
            r"manual_backward was not called for batch 0.*write self.manual_backward\(loss\) for loss.backward",
        ),
        (Misses, 4, "manual_backward was not called for batch 1"),
        (TwoLosses, 1, "Add the losses of a batch, whether they share a graph or not .*, and call it once"),
        (ClipsByHand, 1, r"put the clip into the plan: Plan\(clip=tg.clip.GlobalNorm\(max_norm\)\)"),
        (
            EachFourth,
            1,
            r"optimizer.step\(\) was not called in training_step for batch 0.*Accumulate\(micro_batches=K\)",
        ),
    ],
)
def test_another_step_is_named(kind, steps, text):
    module = kind()
    with pytest.raises(tg.UsageError, match=text):
        fit(module, [TightGrad(tg.Plan(tg.Accumulate(steps)))])
    assert unmoved(module)


@pytest.mark.parametrize(("kind", "text"), [(TwoSteps, "came after the step of batch 0"), (StepsTwice, "called twice")])
def test_a_second_step_of_a_batch_is_named(kind, text):
    with pytest.raises(tg.UsageError, match=text):
        fit(kind(), [TightGrad()])
