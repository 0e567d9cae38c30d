"""Small Lightning modules whose batches weigh the same, so that plain Lightning's answer is the right one."""

from itertools import islice

import lightning
import torch
from torch.utils.data import DataLoader

import tightgrad as tg
from tightgrad.integrations.lightning import TightGrad

FILTERS = (
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:The number of training batches:UserWarning",
    "ignore:.*Checkpoint directory:UserWarning",
)
COMPRESSED = tg.Plan(compress=tg.Compress(tg.codecs.IntBlock(bits=8)))


class Regression(lightning.LightningModule):
    """Gradients are large and differ from step to step."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = torch.nn.Linear(4, 8)
            self.last = torch.nn.Linear(8, 1)
        self.seen = []

    def training_step(self, batch, index):
        return self.last(torch.tanh(self.first(batch))).square().mean() * 100

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def grad_norm(self):
        return float(torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).norm())


def rows(number=16):
    return torch.randn(number, 4, generator=torch.Generator().manual_seed(3))


def fit(module, callbacks=(), epochs=1, batches=8, trainer_class=lightning.Trainer, **settings):
    """Train `module` on batches of 2 rows; gives the trainer."""
    trainer = trainer_class(
        max_epochs=epochs,
        accelerator="cpu",
        devices=settings.pop("devices", 1),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )
    trainer.fit(module, DataLoader(rows(2 * batches), batch_size=2))
    return trainer


def both(kind, plan=None, **settings):
    """The module trained by plain Lightning, and with TightGrad among the callbacks."""
    plain, tight = kind(), kind()
    fit(plain, **settings)
    fit(tight, [TightGrad(plan)], **settings)
    return plain, tight


def close(module, other, rel=1e-5):
    ours, theirs = (torch.cat([p.detach().flatten() for p in one.parameters()]) for one in (module, other))
    return float((ours - theirs).norm() / theirs.norm()) < rel


def unmoved(module):
    return all(
        torch.equal(have, want) for have, want in zip(module.parameters(), type(module)().parameters(), strict=True)
    )


class WithPlace(DataLoader):
    """Goes on where its state says, as torchdata's loader does."""

    begin = place = 0

    def __iter__(self):
        self.place, self.begin = self.begin, 0
        for batch in islice(super().__iter__(), self.place, None):
            self.place += 1
            yield batch

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.begin = state["place"]
