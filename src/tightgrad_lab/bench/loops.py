"""The same training under every loop that `tightgrad bench accumulate` compares: one generator each, which yields the
model after every optimizer step. Same weights, same batches, same optimizer.
"""

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg

Batch = tuple[Tensor, Tensor]
Steps = Iterator[nn.Module]
Made = tuple[nn.Module, torch.optim.Optimizer]
WRAPPERS = ("plain", "ddp", "fsdp2 last", "fsdp2 every")


@dataclass(frozen=True)
class Work:
    """A small language model and how it is trained.

    Args:
        wrapper: one of WRAPPERS; what follows "fsdp2" is when gradients are reduced.
        micro_batches: K.
        samples: of each micro-batch.
        length: tokens of a sample.
        width: of the model.
        layers: of the model.
        vocabulary: different tokens.
        clips: whether the global norm is clipped to 1.
        fetch: when TightGrad fetches batches, as in `tg.Accumulate`.
    """

    wrapper: str = "plain"
    micro_batches: int = 4
    samples: int = 8
    length: int = 64
    width: int = 256
    layers: int = 2
    vocabulary: int = 1000
    clips: bool = False
    fetch: str = "window"

    @property
    def every(self) -> bool:
        """Whether gradients are reduced after every micro-batch."""
        return self.wrapper.endswith("every")

    def bare_model(self) -> nn.Module:
        """The model without its wrapper, with the same weights each time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LanguageModel(self)

    def model(self) -> nn.Module:
        """The model in its wrapper."""
        model = self.bare_model()
        if self.wrapper == "ddp":
            return DistributedDataParallel(model)
        if self.wrapper.startswith("fsdp2"):
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for block in model.blocks:  # type: ignore[union-attr]
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        return model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW as it comes."""
        return torch.optim.AdamW(model.parameters(), lr=1e-3)

    def made(self) -> Made:
        """A new model in its wrapper, and its optimizer."""
        model = self.model()
        return model, self.optimizer(model)

    def twin(self, made: Made) -> Made:
        """The same model, and another optimizer over the same state: nobody may step the one that TightGrad steps."""
        model, optimizer = made
        other = self.optimizer(model)
        other.state = optimizer.state
        return model, other

    def batches(self) -> Iterator[Batch]:
        """This rank's micro-batches, without end."""
        for index in count():
            generator = torch.Generator().manual_seed(index * dist.get_world_size() + dist.get_rank())
            tokens = torch.randint(self.vocabulary, (self.samples, self.length + 1), generator=generator)
            yield tokens[:, :-1], tokens[:, 1:]


class LanguageModel(nn.Module):
    """Embedding, transformer blocks, head."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.embedding = nn.Embedding(work.vocabulary, work.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(work.width, 4, 4 * work.width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(work.layers)
        )
        self.head = nn.Linear(work.width, work.vocabulary)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The loss: a mean over tokens."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten())


def by_hand(work: Work, made: Made | None = None) -> Steps:
    """What a careful user writes without a library."""
    model, optimizer = made or work.made()
    batches = work.batches()
    while True:
        for position in range(work.micro_batches):
            with _held(model, work, is_last=position == work.micro_batches - 1):
                (model(*next(batches)) / work.micro_batches).backward()
        if work.clips:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield model


def _held(model: nn.Module, work: Work, *, is_last: bool) -> AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last or work.every)
    return nullcontext()


def with_tightgrad(work: Work, made: Made | None = None) -> Steps:
    """This library."""
    model, optimizer = made or work.made()
    plan = tg.Plan(
        accumulate=tg.Accumulate(work.micro_batches, fetch=work.fetch, sync="every" if work.every else "last"),
        clip=tg.clip.GlobalNorm(1.0) if work.clips else None,
    )
    pipe = tg.attach(model, optimizer, plan, weight=lambda batch: batch[1].numel())
    for window in pipe.windows(work.batches()):
        for batch in window:
            pipe.backward(model(*batch))
        pipe.step()
        yield model


def with_accelerate(work: Work) -> Steps:
    """Accelerate, as in its guide to gradient accumulation."""
    from accelerate import Accelerator

    if dist.get_world_size() > 1:
        os.environ |= _launched()
    accelerator = Accelerator(gradient_accumulation_steps=work.micro_batches, cpu=True)
    bare = work.bare_model()
    model, optimizer = accelerator.prepare(bare, work.optimizer(bare))
    for batch in work.batches():
        with accelerator.accumulate(model):
            accelerator.backward(model(*batch))
            if accelerator.sync_gradients and work.clips:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            yield model


def _launched() -> dict[str, str]:
    """What Accelerate's launcher would have set; it takes the process group that there is."""
    rank, ranks = str(dist.get_rank()), str(dist.get_world_size())
    ranked = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
    return {**ranked, "MASTER_ADDR": "localhost", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}


def with_lightning(work: Work) -> Steps:
    """Lightning's Trainer, which runs the loop itself: on a thread of its own, stopped after every step."""
    go, done = threading.Semaphore(0), threading.Semaphore(0)
    closing = threading.Event()
    models: list[nn.Module] = []
    errors: list[Exception] = []

    def after_step(trainer: Any, model: nn.Module) -> None:
        models[:] = [model]
        done.release()
        go.acquire()
        trainer.should_stop = closing.is_set()

    def train() -> None:
        torch.set_num_threads(1)  # a setting of each thread
        go.acquire()
        try:
            _fit(work, after_step)
        except Exception as error:
            errors.append(error)
            done.release()

    thread = threading.Thread(target=train, name="lightning", daemon=True)
    thread.start()
    try:
        while True:
            go.release()
            done.acquire()
            if errors:
                raise errors[0]
            yield models[0]
    finally:
        closing.set()
        go.release()
        thread.join()


def few_with_lightning(work: Work, steps: int) -> None:
    """Take a few steps on this thread."""
    taken = count(1)

    def after_step(trainer: Any, model: nn.Module) -> None:
        trainer.should_stop = next(taken) >= steps

    _fit(work, after_step)


def _fit(work: Work, after_step: Callable[[Any, nn.Module], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning
        from torch.utils.data import DataLoader, IterableDataset

        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)

        class Module(lightning.LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.model = work.bare_model()

            def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
                return self.model(*batch)  # type: ignore[no-any-return]

            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                if (batch_idx + 1) % work.micro_batches == 0:
                    after_step(self.trainer, self.model)

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return work.optimizer(self.model)

        class Batches(IterableDataset[Batch]):
            def __iter__(self) -> Iterator[Batch]:
                return work.batches()

        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            barebones=True,
            accumulate_grad_batches=work.micro_batches,
            gradient_clip_val=1.0 if work.clips else None,
        )
        trainer.fit(Module(), DataLoader(Batches(), batch_size=None))


def _few(steps: Callable[[Work], Steps]) -> Callable[[Work, int], None]:
    def take(work: Work, number: int) -> None:
        for _, _model in zip(range(number), steps(work), strict=False):
            pass

    return take


@dataclass(frozen=True)
class Loop:
    """One contestant.

    Attributes:
        name: for people.
        steps: yields the model after every step.
        few: takes a number of steps in this thread.
        wrappers: which it can train.
        needs: the distribution that must be installed.
        on: the same as `steps`, on a model and an optimizer that others train as well; None if it makes its own.
    """

    name: str
    steps: Callable[[Work], Steps]
    few: Callable[[Work, int], None]
    wrappers: tuple[str, ...] = WRAPPERS
    needs: str | None = None
    on: Callable[[Work, Made], Steps] | None = None


LOOPS = (
    Loop("loop", by_hand, _few(by_hand), on=by_hand),
    Loop("loop, again", by_hand, _few(by_hand), on=by_hand),
    Loop("tightgrad", with_tightgrad, _few(with_tightgrad), on=with_tightgrad),
    Loop("accelerate", with_accelerate, _few(with_accelerate), ("plain", "ddp"), "accelerate"),
    Loop("lightning", with_lightning, few_with_lightning, ("plain",), "lightning"),
)
