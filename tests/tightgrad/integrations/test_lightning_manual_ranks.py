"""Manual optimization on two ranks, where the backward runs within DDP's forward."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

import tightgrad as tg
from support.lightning_fits import FILTERS, Regression, fit, rows
from support.ranks import run_ranks
from support.tagging import launched
from tightgrad.integrations.lightning import TightGrad

pytestmark = [pytest.mark.filterwarnings(text) for text in FILTERS]
WINDOW = tg.Accumulate(4)
OVERLAPPED = tg.Compress(tg.codecs.Cast("float32"), overlap="backward")


class Manual(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        self.manual_backward(Regression.training_step(self, batch, index))
        self.optimizers().step()


class Toggles(Manual):
    """As Lightning's pages accumulate; the last, shorter window is never synchronised."""

    def training_step(self, batch, index):
        with self.optimizers().toggle_model(sync_grad=(index + 1) % 4 == 0):
            super().training_step(batch, index)


class Blocks(Manual):
    def training_step(self, batch, index):
        with self.trainer.strategy.block_backward_sync():
            super().training_step(batch, index)


def trained(kind, plan):
    """The module, and after how many steps it was left with which error."""
    module, tight, said = kind(), TightGrad(plan), ""
    with launched():
        try:
            fit(module, [tight], batches=14, strategy=DDPStrategy(process_group_backend="gloo"), devices=2)
        except tg.UsageError as error:
            said = str(error)
    return [p.detach().clone() for p in module.parameters()], tight.pipe.state.step, said


@pytest.mark.parametrize(("kind", "steps"), [(Toggles, 1), (Blocks, 0)])
def test_a_backward_that_is_not_synchronised_is_told_before_weights_move(kind, steps):
    (ours, done, said), (theirs, _, _) = run_ranks(2, trained, kind, tg.Plan(WINDOW))
    assert "leave out toggle_model(sync_grad=...)" in said.lower()
    assert done == steps
    assert all(map(torch.equal, ours, theirs))


def big_batches():
    """The float64 weights after the windows of both ranks as big batches on one device."""
    order = torch.randperm(28, generator=torch.Generator().manual_seed(0))  # of the sampler that Lightning puts in
    module, data = Regression().double(), rows(28)[order].double()
    optimizer = module.configure_optimizers()
    for batch in data.split(16):  # 14 batches of two rows, dealt to two ranks: windows of four and of three
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    return [p.detach() for p in module.parameters()]


@pytest.mark.parametrize("plan", [tg.Plan(WINDOW), tg.Plan(WINDOW, compress=OVERLAPPED)])
def test_gradients_are_summed_in_the_last_backward(plan):
    (ours, done, said), (theirs, _, _) = run_ranks(2, trained, Manual, plan)
    assert (done, said) == (2, "")
    assert all(map(torch.equal, ours, theirs))
    for have, want in zip(ours, big_batches(), strict=True):
        assert float((have.double() - want).norm() / want.norm()) < 1e-6
