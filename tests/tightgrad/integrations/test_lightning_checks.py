"""What a trainer or a module may not bring beside the plan: each is named before any weight moves."""

import sys

import lightning
import pytest
import pytorch_lightning
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

import tightgrad as tg
from support.lightning_fits import FILTERS, Regression, both, close, fit, unmoved
from tightgrad.integrations.lightning import TightGrad
from tightgrad.integrations.lightning_checks import check_supported

pytestmark = [pytest.mark.filterwarnings(text) for text in FILTERS]
NORM, VALUE = tg.clip.GlobalNorm(0.05), tg.clip.Value(0.05)


@pytest.mark.parametrize(
    ("planned", "settings", "wanted"),
    [
        (None, {}, None),
        (None, {"gradient_clip_val": 0}, None),
        (None, {"gradient_clip_val": 0.05}, NORM),
        (None, {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}, VALUE),
        (NORM, {}, NORM),
        (NORM, {"gradient_clip_val": 0.05}, NORM),
        (NORM, {"gradient_clip_val": 0.0}, NORM),
        (tg.clip.GlobalNorm(0.05, fold="off"), {"gradient_clip_val": 0.05}, tg.clip.GlobalNorm(0.05, fold="off")),
        (VALUE, {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}, VALUE),
    ],
)
def test_the_trainers_clipping_and_the_plans(planned, settings, wanted):
    tight, plain = Regression(), Regression()
    callback = TightGrad(tg.Plan(clip=planned))
    fit(tight, [callback], **settings)
    assert callback.plan.clip == wanted
    algorithm = "value" if isinstance(wanted, tg.clip.Value) else "norm"
    fit(plain, gradient_clip_val=0.05 if wanted else None, gradient_clip_algorithm=algorithm)
    assert close(tight, plain)


@pytest.mark.parametrize(
    ("planned", "settings"),
    [
        (NORM, {"gradient_clip_val": 1.0}),
        (NORM, {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"}),
        (VALUE, {"gradient_clip_val": 0.05}),
        (VALUE, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
        (tg.clip.GlobalNorm(0.05, norm_type=1.0), {"gradient_clip_val": 0.05}),
        (tg.clip.AGC(0.05), {"gradient_clip_val": 0.05}),
    ],
)
def test_other_clipping_in_the_trainer_is_refused(planned, settings):
    module = Regression()
    with pytest.raises(tg.ConfigError, match=r"the Trainer clips with .* but the plan with .* Give both the same"):
        fit(module, [TightGrad(tg.Plan(clip=planned))], **settings)
    assert unmoved(module)


class SetsTheBound(callbacks.Callback):
    def __init__(self, hook, bound, algorithm):
        self.bound, self.algorithm = bound, algorithm
        setattr(self, hook, self.change)

    def change(self, trainer, module):
        trainer.gradient_clip_val, trainer.gradient_clip_algorithm = self.bound, self.algorithm


@pytest.mark.parametrize(
    ("hook", "bound", "algorithm", "settings"),
    [
        ("on_fit_start", 0.05, None, {}),
        ("on_train_epoch_start", 0.05, "norm", {"gradient_clip_val": 1.0}),
        ("on_train_epoch_start", None, None, {"gradient_clip_val": 1.0}),
        ("on_train_start", 1.0, "value", {"gradient_clip_val": 1.0}),
    ],
)
def test_clipping_that_is_changed_when_the_fit_has_begun_is_told(hook, bound, algorithm, settings):
    module = Regression()
    with pytest.raises(tg.UsageError, match=r"gradient_clip_val was changed when the fit had begun"):
        fit(module, [TightGrad(), SetsTheBound(hook, bound, algorithm)], **settings)
    assert unmoved(module)


def test_the_modules_clipping_and_the_plans_are_one_too_many():
    class OwnClip(Regression):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            raise AssertionError

    module = OwnClip()
    with pytest.raises(tg.ConfigError, match=r"OwnClip.configure_gradient_clipping would clip once more"):
        fit(module, [TightGrad(tg.Plan(clip=NORM))])
    assert unmoved(module)


@pytest.mark.parametrize("planned", [2, ((0, 1), (2, 4))])
def test_another_number_of_micro_batches_is_refused(planned):
    module = Regression()
    with pytest.raises(tg.ConfigError, match=r"Trainer\(accumulate_grad_batches\) is 4"):
        fit(module, [TightGrad(tg.Plan(tg.Accumulate(planned)))], accumulate_grad_batches=4)
    assert unmoved(module)


def test_a_callback_may_be_used_for_several_fits():
    callback = TightGrad()
    for steps in (4, 2):
        fit(Regression(), [callback], accumulate_grad_batches=steps)
        assert callback.plan.accumulate.micro_batches == steps


class OwnBackward(Regression):
    def backward(self, loss):
        loss.backward(retain_graph=True)


class Closing(Regression):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Scaled(Precision):
    def optimizer_step(self, optimizer, model, closure, **kwargs):
        raise AssertionError


class ClipsByRow(Precision):
    def clip_grad_by_norm(self, optimizer, clip_val):
        raise AssertionError


class OwnStep(SingleDeviceStrategy):
    def optimizer_step(self, optimizer, closure, model=None, **kwargs):
        raise AssertionError


@pytest.mark.parametrize(
    ("module", "settings", "text"),
    [
        (OwnBackward(), {}, r"OwnBackward overrides backward\(\)"),
        (Closing(), {}, r"LBFGS evaluates the loss again inside its step \(a closure\)"),
        (Regression(), {"plugins": [Scaled()]}, r"plugin Scaled has a optimizer_step\(\) of its own"),
        (Regression(), {"plugins": [ClipsByRow()]}, r"plugin ClipsByRow has a clip_grad_by_norm\(\) of its own"),
        (Regression(), {"strategy": OwnStep(torch.device("cpu"))}, r"strategy OwnStep has a optimizer_step\(\)"),
    ],
)
def test_what_replaces_a_part_of_the_step_is_refused(module, settings, text):
    with pytest.raises(tg.UnsupportedError, match=text):
        fit(module, [TightGrad()], **settings)
    assert unmoved(module)


def test_a_scaler_of_lightnings_own_is_refused():
    trainer = lightning.Trainer(accelerator="cpu", devices=1, logger=False, barebones=True)
    scaler = torch.amp.GradScaler("cpu")
    trainer.strategy.precision_plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    with pytest.raises(tg.UnsupportedError, match='precision="16-mixed" brings a GradScaler'):
        check_supported(trainer, Regression())


def test_averaging_of_weights_is_refused():
    trainer = lightning.Trainer(accelerator="cpu", devices=1, logger=False, barebones=True)
    trainer.strategy.__class__ = type("Averages", (DDPStrategy,), {})
    trainer.strategy._model_averaging_period = 4
    with pytest.raises(tg.UnsupportedError, match=r"Averages\(model_averaging_period=4\)"):
        check_supported(trainer, Regression())


def test_the_other_package_of_lightning_is_named():
    class Other(pytorch_lightning.LightningModule):
        training_step, configure_optimizers = Regression.training_step, Regression.configure_optimizers

        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)

    with pytest.raises(tg.UsageError, match=r"write `import lightning.pytorch as pl`"):
        fit(Other(), [TightGrad()], trainer_class=pytorch_lightning.Trainer)
    assert "pytorch_lightning" in sys.modules


class Plateau(Regression):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log("loss", loss)
        return loss


class Steps(Regression):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


@pytest.mark.parametrize("kind", [Plateau, Steps])
def test_schedules_are_lightnings_own(kind):
    plain, tight = both(kind, epochs=4, accumulate_grad_batches=2)
    rates = [module.optimizers().param_groups[0]["lr"] for module in (plain, tight)]
    assert rates[0] == rates[1] < 0.01
    assert close(tight, plain)


class Normalised(Regression):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8)

    def training_step(self, batch, index):
        return self.last(self.norm(self.first(batch))).square().mean()


class Gentle(Normalised):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.Identity()


@pytest.mark.filterwarnings("ignore:Swapping scheduler:UserWarning", "ignore:.*lr_scheduler.step.*before:UserWarning")
@pytest.mark.parametrize("kind", [Gentle, Normalised])
def test_averaged_weights(kind):
    """With BatchNorm, Lightning runs one epoch more without backward, whose last batch steps on stale gradients once
    more; with TightGrad it does not, so that only the statistics are the same.
    """
    plain, tight = kind(), kind()
    for module, own in ((plain, []), (tight, [TightGrad()])):
        averaging = callbacks.StochasticWeightAveraging(swa_lrs=0.001, swa_epoch_start=1)
        fit(module, [*own, averaging], epochs=3)
    assert close(tight, plain, rel=1e-5 if kind is Gentle else 1e-2)
    assert all(torch.allclose(a, b) for a, b in zip(tight.buffers(), plain.buffers(), strict=True))
