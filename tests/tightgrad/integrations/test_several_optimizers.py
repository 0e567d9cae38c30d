"""Several optimizers of one model are one step in Accelerate and in Lightning, as in `attach(model, [a, b], plan)`."""

import pytest
import torch
from torch.utils.data import DataLoader

import tightgrad as tg
from support.accelerate_state import reset
from support.lightning_fits import FILTERS, Regression, close, fit, rows
from support.ranks import run_ranks
from support.tagging import BATCH, PLANS, STEPS, Tagger, Tokens, check_equal, launched, num_tokens, raw_loop, weights_of
from tightgrad.integrations.accelerate import TightAccelerator
from tightgrad.integrations.lightning import TightGrad

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in FILTERS),
    pytest.mark.filterwarnings("ignore:the loop over the training loader was left:tightgrad.TightGradWarning"),
]


def pair(model):
    return [torch.optim.AdamW(model.embed.parameters(), lr=0.1), torch.optim.SGD(model.head.parameters(), lr=0.5)]


def make(plan, ranks=1, model=None, **settings):
    accelerator = TightAccelerator(
        plan=plan, weight=num_tokens, gradient_accumulation_steps=STEPS, cpu=True, **settings
    )
    model = model or Tagger()
    return accelerator, *accelerator.prepare(model, *pair(model), DataLoader(Tokens(ranks), batch_size=BATCH))


def all_steps_then_all_clears(adamw, sgd):
    adamw.step()
    sgd.step()
    adamw.zero_grad()
    sgd.zero_grad()


def one_after_the_other(adamw, sgd):
    for optimizer in (sgd, adamw):
        optimizer.step()
        optimizer.zero_grad()


def train(accelerator, model, adamw, sgd, loader, step=one_after_the_other):
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            step(adamw, sgd)


@pytest.mark.parametrize("step", [all_steps_then_all_clears, one_after_the_other])
@pytest.mark.parametrize("name", PLANS)
def test_accelerate_does_what_attach_does(name, step):
    weights, _, records = raw_loop(PLANS[name], optimizers=pair)
    accelerator, *parts = make(PLANS[name])
    train(accelerator, *parts, step=step)
    check_equal(weights_of(parts[0]), weights)
    assert accelerator.pipe.state.step == len(records) == 2


def test_schedulers_may_stand_between_the_steps():
    want = {}
    for order in ("between", "after"):
        accelerator, model, *optimizers, loader = make(PLANS["clipped"])
        halves = [torch.optim.lr_scheduler.ExponentialLR(one.optimizer, 0.5) for one in optimizers]
        schedules = accelerator.prepare(*halves)
        for batch in loader:
            accelerator.backward(model(**batch)["loss"])
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                if order == "between":
                    schedule.step()
            if order == "after":
                for schedule in schedules:
                    schedule.step()
            for optimizer in optimizers:
                optimizer.zero_grad()
        want[order] = weights_of(model)
        assert [one.param_groups[0]["lr"] for one in optimizers] == [0.1 / 4, 0.5 / 4]
        reset()
    check_equal(want["between"], want["after"])


def two_ranks(name):
    weights, _, _ = raw_loop(PLANS[name], optimizers=pair)
    with launched():
        try:
            accelerator, *parts = make(PLANS[name], ranks=2)
            train(accelerator, *parts)
            assert accelerator.num_processes == 2
        finally:
            reset()
    check_equal(weights_of(parts[0]), weights)


def test_accelerate_does_what_attach_does_on_two_ranks():
    run_ranks(2, two_ranks, "compressed")


@pytest.mark.filterwarnings("ignore:1 trainable parameter is not in the optimizer:tightgrad.TightGradWarning")
@pytest.mark.filterwarnings("ignore:2 trainable parameters are not in the optimizer:tightgrad.TightGradWarning")
def test_an_optimizer_may_be_prepared_later():
    weights, _, _ = raw_loop(PLANS["compressed"], optimizers=pair)
    accelerator = TightAccelerator(
        plan=PLANS["compressed"], weight=num_tokens, gradient_accumulation_steps=STEPS, cpu=True
    )
    model = Tagger()
    adamw, sgd = pair(model)
    model, adamw = accelerator.prepare(model, adamw)
    sgd, loader = accelerator.prepare(sgd, DataLoader(Tokens(), batch_size=BATCH))
    train(accelerator, model, adamw, sgd, loader)
    check_equal(weights_of(model), weights)


def test_a_checkpoint_holds_both(tmp_path):
    weights, _, _ = raw_loop(PLANS["compressed"], epochs=2, optimizers=pair)
    accelerator, *parts = make(PLANS["compressed"])
    train(accelerator, *parts)
    accelerator.save_state(tmp_path)
    reset()
    accelerator, *parts = make(PLANS["compressed"])
    accelerator.load_state(tmp_path)
    train(accelerator, *parts)
    check_equal(weights_of(parts[0]), weights)


@pytest.mark.filterwarnings("ignore:the loss of one micro-batch was averaged over:tightgrad.TightGradWarning")
def test_with_accelerates_own_answer_all_gradients_stay_until_zero_grad():
    accelerator, model, adamw, sgd, loader = make(PLANS["clipped"], compat="accelerate")
    kept = []

    def step(adamw, sgd):
        adamw.step()
        sgd.step()
        if accelerator.sync_gradients:
            kept.append(all(p.grad is not None for p in model.parameters()))
        adamw.zero_grad()
        sgd.zero_grad()

    train(accelerator, model, adamw, sgd, loader, step=step)
    assert kept == [True, True]


def test_a_skipped_step_is_skipped_for_both():
    plan = tg.Plan(guard=tg.Guard("skip"))
    accelerator, model, adamw, sgd, loader = make(plan)
    before = weights_of(model)
    skipped = []

    def step(adamw, sgd):
        one_after_the_other(adamw, sgd)
        skipped.append((adamw.step_was_skipped, sgd.step_was_skipped))

    for batch in loader:
        accelerator.backward(model(**batch)["loss"] * float("nan"))
        step(adamw, sgd)
        if accelerator.sync_gradients:
            break
    assert skipped[-1] == (True, True)
    check_equal(weights_of(model), before)


def only_one(adamw, sgd):
    adamw.step()
    adamw.zero_grad()


@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_loop_that_leaves_one_out_is_told(steps):
    accelerator = TightAccelerator(plan=tg.Plan(), weight=num_tokens, gradient_accumulation_steps=steps, cpu=True)
    model = Tagger()
    parts = accelerator.prepare(model, *pair(model), DataLoader(Tokens(), batch_size=BATCH))
    with pytest.raises(tg.UsageError, match=r"step\(\) of one optimizer and not of SGD.*in which all were stepped"):
        train(accelerator, *parts, step=only_one)
    assert accelerator.pipe.state.step == 1


def test_two_models_are_refused():
    accelerator = TightAccelerator(plan=tg.Plan(), cpu=True)
    models = Tagger(), Tagger()
    with pytest.raises(tg.UnsupportedError, match="2 models were prepared, and TightAccelerator trains one"):
        accelerator.prepare(*models, *(torch.optim.SGD(model.parameters(), lr=0.1) for model in models))


class Two(Regression):
    """Two optimizers in manual optimization."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.hooked = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.first.parameters(), lr=0.01), torch.optim.Adam(self.last.parameters(), lr=0.01)

    def loss(self, batch):
        return Regression.training_step(self, batch, 0)

    def training_step(self, batch, index):
        self.manual_backward(self.loss(batch))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


class ClearsFirst(Two):
    def training_step(self, batch, index):
        first, last = self.optimizers()
        first.zero_grad()
        last.zero_grad()
        self.manual_backward(self.loss(batch))
        last.step()
        first.step()


class Scheduled(Two):
    def configure_optimizers(self):
        first, last = super().configure_optimizers()
        return [first, last], [torch.optim.lr_scheduler.ExponentialLR(one, 0.9) for one in (first, last)]

    def training_step(self, batch, index):
        self.manual_backward(self.loss(batch))
        for optimizer, schedule in zip(self.optimizers(), self.lr_schedulers(), strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


class Halves(Two):
    """Edits gradients in the hook before the step, once for each optimizer's own parameters."""

    def on_before_optimizer_step(self, optimizer):
        self.hooked.append(type(optimizer).__name__)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(0.5)


@pytest.mark.parametrize("kind", [Two, ClearsFirst, Scheduled, Halves])
def test_lightnings_manual_optimization_does_what_it_does_without(kind):
    plain, tight, callback = kind(), kind(), TightGrad()
    fit(plain)
    fit(tight, [callback])
    assert callback.pipe.state.step == 8
    assert tight.hooked == plain.hooked
    assert close(tight, plain)


def test_lightning_does_what_attach_does():
    plan = tg.Plan(tg.Accumulate(4), clip=tg.clip.GlobalNorm(0.05))
    reference, tight = Two(), Two()
    fit(tight, [TightGrad(plan)])
    pipe = tg.attach(reference, list(reference.configure_optimizers()), plan)
    for window in pipe.windows(DataLoader(rows(16), batch_size=2)):
        for batch in window:
            pipe.backward(reference.loss(batch))
        pipe.step()
    check_equal(weights_of(tight), weights_of(reference))


class LeavesOneOut(Two):
    def training_step(self, batch, index):
        self.manual_backward(self.loss(batch))
        self.optimizers()[index % 2].step()


class OneLossEach(Two):
    """A step for each loss, as in a GAN."""

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            self.manual_backward(self.loss(batch))
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (LeavesOneOut, r"step\(\) of one optimizer and not of Adam"),
        (OneLossEach, "came after the step of batch 0.*tightgrad.attach"),
    ],
)
def test_optimizers_that_step_at_different_times_are_named(kind, text):
    with pytest.raises(tg.UsageError, match=text):
        fit(kind(), [TightGrad()])
