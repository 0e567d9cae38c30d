"""Lightning divides every loss by accumulate_grad_batches, also in the last, shorter window."""

import logging
import warnings

import lightning
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader

ACCUMULATE = 4

VOCABULARY = 17


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.output = nn.Linear(12, VOCABULARY)

    def forward(self, tokens):
        return self.output(torch.tanh(self.embedding(tokens)))


def build_model():
    return Model()


def make_batches(count, ragged):
    batches = []
    for i in range(count):
        length = 8
        batches.append((torch.randint(VOCABULARY, (2, length)), torch.randint(VOCABULARY, (2, length))))
    return batches


def loss(model, batch):
    tokens, labels = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()), labels.numel()


class Module(lightning.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, index):
        return loss(self.model, batch)[0]

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(model, batches):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=DDPStrategy(process_group_backend="gloo"),
        use_distributed_sampler=False,
        accumulate_grad_batches=ACCUMULATE,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(model), DataLoader(batches, batch_size=None))
