"""`TightGrad` for Lightning: its own loop gives what the raw loop gives, with automatic and manual optimization."""

import lightning
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

import tightgrad as tg
from support.ranks import run_ranks
from support.tagging import (
    PLANS,
    STEPS,
    Tagger,
    check_equal,
    launched,
    num_tokens,
    raw_loader,
    raw_loop,
    weights_of,
)
from tightgrad.integrations.lightning import TightGrad

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:The number of training batches:UserWarning",
    "ignore:.*Checkpoint directory:UserWarning",
)


class Automatic(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.tagger = Tagger()
        self.losses = []

    def training_step(self, batch, index):
        loss = self.tagger(**batch)["loss"]
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Manual(Automatic):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        loss = super().training_step(batch, index)
        self.manual_backward(loss)
        optimizer.step()
        return loss


def trainer_of(callback, module, epochs=1, **kwargs):
    automatic = {"accumulate_grad_batches": STEPS, "gradient_clip_val": 0.1} if module.automatic_optimization else {}
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=kwargs.pop("devices", 1),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=kwargs.pop("enable_checkpointing", False),
        callbacks=[callback],
        **automatic,
        **kwargs,
    )


def fit(plan, module, epochs=1, **kwargs):
    if not module.automatic_optimization:
        plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=STEPS), compress=plan.compress, clip=plan.clip)
    callback = TightGrad(plan, weight=num_tokens)
    trainer_of(callback, module, epochs, **kwargs).fit(module, raw_loader())
    return callback


@pytest.mark.parametrize("kind", [Automatic, Manual])
@pytest.mark.parametrize("name", PLANS)
def test_same_as_the_raw_loop(name, kind):
    weights, losses, records = raw_loop(PLANS[name], epochs=2)
    module = kind()
    callback = fit(PLANS[name], module, epochs=2)
    assert module.losses == losses
    check_equal(weights_of(module.tagger), weights)
    assert callback.loop.record.grad_norm == pytest.approx(records[-1].grad_norm, rel=1e-6)


def test_the_trainer_clips_where_the_plan_does_not():
    callback = fit(tg.Plan(), Automatic())
    assert callback.plan == tg.Plan(accumulate=tg.Accumulate(STEPS, fetch="window"), clip=tg.clip.GlobalNorm(0.1))


def test_limited_batches_make_exact_windows():
    callback = fit(tg.Plan(), Automatic(), limit_train_batches=STEPS + 1)
    assert callback.pipe.state.step == 2
    assert callback.loop.record.micro_batches == 1


def test_a_checkpoint_holds_the_residuals(tmp_path):
    weights, _, _ = raw_loop(PLANS["compressed"], epochs=2)
    module, callback = Automatic(), TightGrad(PLANS["compressed"], weight=num_tokens)
    trainer = trainer_of(callback, module, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(module, raw_loader())
    trainer.save_checkpoint(tmp_path / "kept.ckpt")
    module, callback = Automatic(), TightGrad(PLANS["compressed"], weight=num_tokens)
    trainer = trainer_of(callback, module, epochs=2, enable_checkpointing=True, default_root_dir=tmp_path)
    trainer.fit(module, raw_loader(), ckpt_path=tmp_path / "kept.ckpt")
    assert callback.pipe.state.step == 4
    check_equal(weights_of(module.tagger), weights)


def two_ranks(name, kind):
    weights, losses, _ = raw_loop(PLANS[name])
    with launched():
        module = {"automatic": Automatic, "manual": Manual}[kind]()
        plan = PLANS[name]
        if kind == "manual":
            plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=STEPS), compress=plan.compress, clip=plan.clip)
        callback = TightGrad(plan, weight=num_tokens)
        strategy = DDPStrategy(process_group_backend="gloo")
        trainer = trainer_of(callback, module, strategy=strategy, devices=2, use_distributed_sampler=False)
        assert trainer.world_size == dist.get_world_size() == 2
        trainer.fit(module, raw_loader(dist.get_rank(), 2))
        traffic = callback.pipe.adapter.collective.traffic.nbytes
    assert module.losses == losses
    check_equal(weights_of(module.tagger), weights)
    return traffic


@pytest.mark.parametrize("kind", ["automatic", pytest.param("manual", marks=pytest.mark.slow)])
def test_same_as_the_raw_loop_on_two_ranks(kind):
    dense, compressed = (run_ranks(2, two_ranks, name, kind) for name in PLANS)
    assert 0 < compressed[0] < dense[0]


class Sharded(Automatic):
    def configure_model(self):
        for layer in (self.tagger.embed, self.tagger.head):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.tagger, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])


def sharded_ranks():
    weights, losses, records = raw_loop(PLANS["clipped"])
    with launched():
        module = Sharded()
        callback = TightGrad(PLANS["clipped"], weight=num_tokens)
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
        trainer = trainer_of(callback, module, strategy=strategy, devices=2, use_distributed_sampler=False)
        trainer.fit(module, raw_loader(dist.get_rank(), 2))
    assert module.losses == pytest.approx(losses, rel=1e-6)
    assert callback.loop.record.grad_norm == pytest.approx(records[-1].grad_norm, rel=1e-5)
    for name, value in module.tagger.state_dict().items():
        assert torch.allclose(value.full_tensor(), weights[name], rtol=1e-5, atol=1e-7), name
    return True


def test_norm_clipping_under_fsdp2():
    assert all(run_ranks(2, sharded_ranks))
