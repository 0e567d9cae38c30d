"""Loops of one process over the windows of `windows`: torch by hand, Accelerate, Trainer, Lightning, TightGrad.

Each is what the framework's own guide to gradient accumulation writes, with an optimizer that keeps what it is given.
"""

import contextlib
import importlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tightgrad as tg
from tightgrad_lab.experiments.window_states.others import with_keras, with_optax
from tightgrad_lab.experiments.window_states.windows import (
    IGNORED,
    MICRO_BATCHES,
    Batch,
    Loop,
    Recorder,
    Tagger,
    Taken,
    cells_of,
    flat_gradient,
    mean_loss,
    num_tokens,
)
from tightgrad_lab.schema.accumulation import StepCell

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def by_hand(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """The loop of most tutorials: every loss over K, a step at every K-th batch of the epoch."""
    model = Tagger()
    optimizer = Recorder(model)
    for _ in range(epochs):
        for index, batch in enumerate(batches):
            optimizer.seen += 1
            (mean_loss(model, batch) / MICRO_BATCHES).backward()
            if (index + 1) % MICRO_BATCHES == 0:
                optimizer.step()
                optimizer.zero_grad()
    return optimizer.taken


def weighted_by_hand(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """The loop of section 5.2: the window's tokens are counted first; the last window is as long as it is."""
    model = Tagger()
    optimizer = Recorder(model)
    for _ in range(epochs):
        for start in range(0, len(batches), MICRO_BATCHES):
            window = batches[start : start + MICRO_BATCHES]
            total = sum(int(num_tokens(batch)) for batch in window)
            for batch in window:
                optimizer.seen += 1
                (mean_loss(model, batch) * int(num_tokens(batch)) / total).backward()
            optimizer.step()
            optimizer.zero_grad()
    return optimizer.taken


def with_tightgrad(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """The pipeline; a partial window is flushed."""
    model = Tagger()
    optimizer = Recorder(model)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(MICRO_BATCHES)), weight=num_tokens)
    for _ in range(epochs):
        for window in pipe.windows(batches):
            for batch in window:
                optimizer.seen += 1
                pipe.backward(mean_loss(model, batch))
            pipe.step()
    return optimizer.taken


def _loader(batches: Sequence[Batch]) -> DataLoader[Any]:
    data = TensorDataset(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))
    return DataLoader(data, batch_size=1)


def with_accelerate(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """Accelerate's `accumulate`; its state is global and is reset."""
    accelerate, state = importlib.import_module("accelerate"), importlib.import_module("accelerate.state")
    try:
        accelerator = accelerate.Accelerator(gradient_accumulation_steps=MICRO_BATCHES, cpu=True)
        bare = Tagger()
        recorder = Recorder(bare)
        model, optimizer, loader = accelerator.prepare(bare, recorder, _loader(batches))
        for _ in range(epochs):
            for batch in loader:
                with accelerator.accumulate(model):
                    recorder.seen += 1
                    accelerator.backward(mean_loss(model, batch))
                    optimizer.step()
                    optimizer.zero_grad()
        return recorder.taken
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


class _Counted(nn.Module):
    """The tagger as Trainer wants it: it gives its loss itself."""

    def __init__(self) -> None:
        super().__init__()
        self.tagger, self.seen = Tagger(), 0

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """A mean over its own micro-batch's tokens."""
        self.seen += 1
        return {"loss": mean_loss(self.tagger, (input_ids, labels))}


class _CountedItems(_Counted):
    """The same with a loss that divides by `num_items_in_batch`, which Trainer counts over the window."""

    def forward(self, input_ids: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """A sum over the tokens, divided by what Trainer says."""
        self.seen += 1
        scores = self.tagger(input_ids).flatten(0, 1)
        total = nn.functional.cross_entropy(scores, labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return {"loss": total / kwargs["num_items_in_batch"]}


def _with_trainer(model: _Counted, batches: Sequence[Batch], epochs: int) -> list[Taken]:
    transformers = importlib.import_module("transformers")
    state = importlib.import_module("accelerate.state")
    taken: list[Taken] = []

    class Keep(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            taken.append((model.seen, flat_gradient(model)))

    with tempfile.TemporaryDirectory(prefix="tightgrad-") as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=MICRO_BATCHES,
            num_train_epochs=epochs,
            learning_rate=0.0,
            max_grad_norm=0.0,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )
        data = [{"input_ids": ids[0], "labels": labels[0]} for ids, labels in batches]
        trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[Keep()])
        try:
            trainer.train()
        finally:
            state.AcceleratorState._reset_state(reset_partial_state=True)
            state.GradientState._reset_state()
    return taken


def with_trainer(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """Trainer, and a model whose loss is a mean over its own micro-batch."""
    return _with_trainer(_Counted(), batches, epochs)


def with_trainer_counting(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """Trainer, and a model that takes `num_items_in_batch`."""
    return _with_trainer(_CountedItems(), batches, epochs)


def with_lightning(batches: Sequence[Batch], epochs: int) -> list[Taken]:
    """Lightning's `accumulate_grad_batches`."""
    lightning = importlib.import_module("lightning")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.seen = Tagger(), 0
            self.taken: list[Taken] = []

        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            self.seen += 1
            return mean_loss(self.model, batch)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.taken.append((self.seen, flat_gradient(self.model)))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=epochs, accumulate_grad_batches=MICRO_BATCHES, accelerator="cpu", devices=1, barebones=True
    )
    trainer.fit(module, _loader(batches))
    return module.taken


@dataclass(frozen=True)
class Contestant:
    """A row of the table.

    Args:
        framework: its name.
        method: how it accumulates, as code.
        loop: what is run.
        needs: the distributions that must be installed; their versions are the row's.
    """

    framework: str
    method: str
    loop: Loop
    needs: tuple[str, ...]

    @property
    def version(self) -> str | None:
        """Of what it needs; None if any of it is not installed."""
        return versions(self.needs)


def versions(names: Sequence[str]) -> str | None:
    """The versions of distributions, of which "a|b" means either; None if any is not installed."""
    found = [_version(name.split("|")) for name in names]
    return "/".join(map(str, found)) if all(found) else None


def _version(names: Sequence[str]) -> str | None:
    for name in names:
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


CONTESTANTS = {
    "loop": Contestant("PyTorch", "loss / K", by_hand, ("torch",)),
    "weighted": Contestant("PyTorch", "loss * n_k / N", weighted_by_hand, ("torch",)),
    "accelerate": Contestant("Accelerate", "accumulate(model)", with_accelerate, ("accelerate",)),
    "trainer": Contestant("Transformers", "Trainer, mean loss", with_trainer, ("transformers",)),
    "trainer_items": Contestant(
        "Transformers", "Trainer, num_items_in_batch", with_trainer_counting, ("transformers",)
    ),
    "lightning": Contestant("Lightning", "accumulate_grad_batches=K", with_lightning, ("lightning",)),
    "optax": Contestant("JAX/optax", "optax.MultiSteps", with_optax, ("jax", "optax")),
    "keras": Contestant(
        "Keras/TensorFlow", "gradient_accumulation_steps=K", with_keras, ("keras", "tensorflow-cpu|tensorflow")
    ),
    "tightgrad": Contestant("TightGrad", "tg.Accumulate(K)", with_tightgrad, ("tightgrad",)),
}
"""The rows of one process, in order."""


@dataclass(frozen=True)
class Job:
    """One contestant, and over how many draws of data it is run."""

    name: str
    seeds: int


def measure(job: Job) -> dict[str, StepCell]:
    """The cells of one contestant, in a process that may print and keep global state as it likes."""
    os.environ |= OFFLINE
    with _quiet():
        return cells_of(CONTESTANTS[job.name].loop, job.seeds)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
