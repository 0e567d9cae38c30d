"""Lightning under `ModelParallelStrategy`: validation before and inside of windows, and going on after any batch."""

import warnings

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

import tightgrad as tg
from support.lightning_fits import FILTERS, WithPlace
from support.ranks import run_ranks
from support.tagging import (
    BATCH,
    NUM_BATCHES,
    PLANS,
    STEPS,
    Tagger,
    check_equal,
    launched,
    num_tokens,
    raw_loader,
    raw_loop,
)
from support.wrapping import full
from tightgrad.integrations.lightning import TightGrad

pytestmark = [
    pytest.mark.filterwarnings("error::tightgrad.TightGradWarning"),
    *map(pytest.mark.filterwarnings, FILTERS),
]


class Sharded(lightning.LightningModule):
    """The module itself is a unit as well."""

    def __init__(self, optimizer=torch.optim.SGD):
        super().__init__()
        self.tagger, self.optimizer = Tagger(), optimizer

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for part in (self.tagger.head, self.tagger, self):
            fully_shard(part, mesh=mesh)

    def training_step(self, batch, index):
        return self.tagger(**batch)["loss"]

    def validation_step(self, batch, index):
        self.tagger(**batch)

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=0.5)


class ShardedBelow(Sharded):
    """As Lightning's pages write it: the module itself is no unit."""

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for part in (self.tagger.head, self.tagger):
            fully_shard(part, mesh=mesh)


class PartlySharded(ShardedBelow):
    """One parameter is not sharded, so nobody sums its gradient."""

    def configure_model(self):
        super().configure_model()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, index):
        return self.scale * super().training_step(batch, index)


class Saves(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        done = trainer.current_epoch * NUM_BATCHES + batch_idx + 1
        if done in (1, 5):
            trainer.save_checkpoint(self.folder / str(done))


def fit(plan, *callbacks, module=None, path=None, epochs=1, validation=None, **settings):
    module, tight = module or Sharded(), TightGrad(plan, weight=num_tokens)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=ModelParallelStrategy(
            data_parallel_size=dist.get_world_size(), tensor_parallel_size=1, process_group_backend="gloo"
        ),
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=STEPS,
        callbacks=[tight, *callbacks],
        **settings,
    )
    plain = raw_loader(dist.get_rank(), dist.get_world_size())
    trainer.fit(module, WithPlace(plain.dataset, batch_size=BATCH), validation, ckpt_path=path)
    return {name: full(value).clone() for name, value in module.tagger.state_dict().items()}, tight


def validated(kind):
    want, _, _ = raw_loop(PLANS["clipped"])
    with launched():
        loader = raw_loader(dist.get_rank(), dist.get_world_size())
        have, tight = fit(PLANS["clipped"], module=kind(), validation=loader, val_check_interval=3, limit_val_batches=2)
    assert tight.pipe.state.step == 2
    for name, value in want.items():
        torch.testing.assert_close(have[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Sharded, ShardedBelow])
def test_validation_before_training_and_in_mid_window(kind):
    run_ranks(2, validated, kind)


def fits_partly_sharded():
    with (
        launched(),
        pytest.raises(tg.UnsupportedError, match=r"'tagger' inside the model .* give that module to attach"),
    ):
        fit(PLANS["clipped"], module=PartlySharded())


def test_a_parameter_outside_of_what_is_sharded_is_refused():
    run_ranks(2, fits_partly_sharded)


def goes_on(folder, module, kind):
    plan = PLANS["compressed"]
    with launched():
        want, _ = fit(plan, Saves(folder), module=module(kind), epochs=2)
        for done in (1, 5):
            have, tight = fit(plan, module=module(kind), path=folder / str(done), epochs=2)
            check_equal(have, want)
            assert tight.pipe.state.step == 4


@pytest.mark.filterwarnings("ignore:Found keys that are in the model state dict:UserWarning")
@pytest.mark.parametrize(
    ("module", "kind"), [(Sharded, torch.optim.SGD), (Sharded, torch.optim.AdamW), (ShardedBelow, torch.optim.AdamW)]
)
def test_it_goes_on_from_a_checkpoint_in_mid_window_also_before_the_first_step(module, kind, tmp_path):
    """torch steps an optimizer that has no state yet when it writes it, here inside of the first window."""
    run_ranks(2, goes_on, tmp_path, module, kind)


class Blocks(Sharded):
    def training_step(self, batch, index):
        self.tagger.set_requires_gradient_sync((index + 1) % STEPS == 0)
        return super().training_step(batch, index)


class CountsSteps(Callback):
    count = 0

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_post_hook(self.step)

    def step(self, *_):
        self.count += 1


def unsynchronised():
    counts = CountsSteps()
    with launched(), pytest.raises(tg.UsageError, match=r"leave out set_requires_gradient_sync\(False\)"):
        fit(PLANS["clipped"], counts, module=Blocks())
    return counts.count


def test_a_backward_without_synchronisation_is_told_before_weights_move():
    assert run_ranks(2, unsynchronised) == [1, 1]


class FailsInTheLast(ShardedBelow):
    def training_step(self, batch, index):
        if index == STEPS - 1:
            raise ValueError("the loop's own error")
        return super().training_step(batch, index)


class LeavesBeforeTheLast(ShardedBelow):
    def on_train_batch_start(self, batch, index):
        return -1 if index == STEPS - 1 else None


class Keeps(Callback):
    def on_train_start(self, trainer, pl_module):
        self.trainer = trainer


def fails_in_the_last():
    keeps = Keeps()
    with launched(), pytest.raises(ValueError, match="the loop's own error"):
        fit(PLANS["clipped"], keeps, module=FailsInTheLast())
    return {"backward", "optimizer_step", "process_dataloader"} & keeps.trainer.strategy.__dict__.keys()


def test_an_error_in_the_last_micro_batch_is_the_one_that_is_raised_and_everything_is_given_back():
    assert run_ranks(2, fails_in_the_last) == [set(), set()]


def leaves_before_the_last():
    with launched(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", tg.TightGradWarning)
        _, tight = fit(PLANS["clipped"], module=LeavesBeforeTheLast())
    return tight.pipe.state.step, [str(one.message) for one in told if one.category is tg.TightGradWarning]


def test_an_epoch_that_is_left_before_the_last_micro_batch_is_told_and_no_error():
    (step, (told,)), (other, nothing) = run_ranks(2, leaves_before_the_last)
    assert (step, other, nothing) == (0, 0, [])
    assert "the epoch was left after" in told
