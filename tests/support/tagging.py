"""The same data, model and plan in a raw loop, and what a framework in its place has to give: the same weights."""

import os
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import tightgrad as tg

FEATURES, VOCABULARY, LENGTH = 8, 11, 16
STEPS = 4  # micro-batches of a window
NUM_BATCHES = 7  # so that the last window is partial
BATCH = 2
IGNORED = -100

CLIPPED = tg.Plan(clip=tg.clip.GlobalNorm(0.1))
COMPRESSED = tg.Plan(
    clip=tg.clip.GlobalNorm(0.1),
    compress=tg.Compress(tg.codecs.IntBlock(bits=4), feedback=tg.ErrorFeedback()),
)
PLANS = {"clipped": CLIPPED, "compressed": COMPRESSED}


class Tokens(Dataset):
    """Sentences of very different numbers of tokens that count."""

    def __init__(self, ranks=1):
        generator = torch.Generator().manual_seed(1)
        number = NUM_BATCHES * BATCH * ranks
        self.inputs, self.labels = (torch.randint(0, VOCABULARY, (number, LENGTH), generator=generator) for _ in "il")
        lengths = torch.randint(1, LENGTH + 1, (number,), generator=generator)
        self.labels[torch.arange(LENGTH)[None] >= lengths[:, None]] = IGNORED

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return {"input_ids": self.inputs[index], "labels": self.labels[index]}


class Tagger(nn.Module):
    """Its loss is the mean over its own micro-batch's tokens: it takes no `num_items_in_batch`."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(VOCABULARY, FEATURES)
            self.head = nn.Linear(FEATURES, VOCABULARY)

    def forward(self, input_ids, labels):
        logits = self.head(self.embed(input_ids))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def num_tokens(batch):
    return (batch["labels"] != IGNORED).sum()


def own_indices(rank, ranks):
    """Batches go round the ranks, as Accelerate and Lightning deal them."""
    return [i for i in range(NUM_BATCHES * BATCH * ranks) if (i // BATCH) % ranks == rank]


def raw_loader(rank=0, ranks=1):
    return DataLoader(torch.utils.data.Subset(Tokens(ranks), own_indices(rank, ranks)), batch_size=BATCH)


def weights_of(model):
    return {name.removeprefix("module."): value.detach().clone() for name, value in model.state_dict().items()}


def one_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.5)


def raw_loop(plan, epochs=1, optimizers=one_optimizer):
    """Final weights and the losses of every micro-batch, with `tg.attach` in a loop of one's own."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if dist.is_initialized() else 0
    model = Tagger()
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = optimizers(model)
    plan = replace(plan, accumulate=tg.Accumulate(micro_batches=STEPS, fetch="window"))
    pipe = tg.attach(wrapped, optimizer, plan, weight=num_tokens)
    losses, records = [], []
    for _ in range(epochs):
        for window in pipe.windows(raw_loader(rank, ranks)):
            for batch in window:
                loss = wrapped(**batch)["loss"]
                losses.append(float(loss.detach()))
                pipe.backward(loss)
            records.append(pipe.step())
    return weights_of(model), losses, records


@contextmanager
def launched():
    """The environment that torchrun gives, around a body that runs in a process group already."""
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    given = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": "0"}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"}
    before = dict(os.environ)
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if name in given})


def check_equal(have, want):
    assert have.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(have[name], value), name
