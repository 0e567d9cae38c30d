"""A case study: real data, a model, a loss, a metric. How its gradients travel is not its business."""

from abc import ABC, abstractmethod
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.core.protocols import Clipper
from tightgrad_lab.errors import ArgumentError

Samples = TypeVar("Samples", bound=Sized)
Batch = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a case is trained: the same for all combinations, so that only the gradient path differs.

    Args:
        epochs: passes over the training samples.
        seeds: how many runs differ in nothing but their random numbers.
        batch_size: samples of one optimizer step, over all ranks and micro-batches.
        micro_batches: with accumulation, the pieces into which a rank's part of a batch is cut.
        learning_rate: the highest; reached linearly during the warm-up, then lowered to 0 along a cosine.
        warmup_fraction: of all steps.
        momentum: of the optimizer (AdamW's first beta).
        weight_decay: of the optimizer.
        clip: the combinations' clipping.
        compress: the combinations' compression.
        variant: which data and model of the case; "" is its default.
    """

    epochs: int
    seeds: int
    batch_size: int
    micro_batches: int
    learning_rate: float
    warmup_fraction: float
    momentum: float
    weight_decay: float
    clip: Clipper
    compress: tg.Compress
    variant: str = ""

    def rank_batch_size(self, ranks: int) -> int:
        """Samples of one step on one rank.

        Raises:
            ArgumentError: the batch cannot be cut evenly.
        """
        if self.batch_size % (ranks * self.micro_batches):
            most = self.batch_size // self.micro_batches
            fitting = [str(n) for n in range(1, most + 1) if most % n == 0]
            raise ArgumentError(
                f"--ranks {ranks} does not divide a batch of {self.batch_size} samples into {self.micro_batches} "
                f"micro-batches a rank; use one of {', '.join(fitting)}."
            )
        return self.batch_size // ranks


@dataclass(frozen=True)
class Example:
    """One test sample as a person reads it."""

    given: str
    truth: str
    predicted: str


Scores = dict[str, float]


class Case(ABC, Generic[Samples]):
    """One case study: data and a model. Cases do not know each other, nor ranks, nor plans."""

    id: ClassVar[str]
    metric: ClassVar[str]
    """Name of the score by which runs are compared, such as "accuracy"."""
    higher_is_better: ClassVar[bool] = True

    @abstractmethod
    def settings(self, *, full: bool) -> Settings:
        """How to train: in minutes on two cores, or (full) as long as the case deserves."""

    @abstractmethod
    def load(self) -> tuple[Samples, Samples]:
        """Training and test samples.

        Raises:
            DataError: data that is not in the package cannot be had.
        """

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, drawn from torch's global generator."""

    @abstractmethod
    def optimizer(self, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        """The optimizer of all runs."""

    def order(self, samples: Samples, order: Tensor, batch_size: int) -> Tensor:
        """Rearrange an epoch's random order, so that for instance samples of a step are of similar length."""
        return order

    def placed(self, samples: Samples, device: torch.device) -> Samples:
        """The samples where `batch` works fastest for a model on `device`: as they are, unless a case moves them."""
        return samples

    @abstractmethod
    def batch(self, samples: Samples, indices: Tensor) -> Batch:
        """The samples at `indices`, as the model takes them, wherever the samples lie."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the batch's weight, a scalar."""

    def weight(self, batch: Batch) -> float | Tensor:
        """What the batch's loss is averaged over: its number of samples, unless a case says otherwise."""
        return len(batch[0])

    @abstractmethod
    def count(self, model: nn.Module, batch: Batch, samples: Samples, indices: Tensor) -> Tensor:
        """Statistics of the model's answers that add up over batches and ranks: float64, shape (n,).

        Args:
            model: in evaluation mode.
            batch: `samples` at `indices`, where the model is.
            samples: the test samples.
            indices: of the samples in the batch.
        """

    @abstractmethod
    def scores(self, statistics: Tensor) -> Scores:
        """Every score by its name, `metric` among them, from the sum of all batches' statistics."""

    def last_count(self, model: nn.Module, batch: Batch, samples: Samples, indices: Tensor) -> Tensor | None:
        """Like `count`, for what takes too long to do after each epoch; None if there is nothing of the kind."""
        return None

    def last_scores(self, statistics: Tensor) -> Scores:
        """Like `scores`, from the statistics of `last_count`."""
        return {}

    @abstractmethod
    def baselines(self) -> dict[str, Scores]:
        """Scores of simple methods on the same test samples, computed now, by the name of the method."""

    @abstractmethod
    def examples(self, model: nn.Module, indices: Tensor) -> list[Example]:
        """What a trained model on the CPU, in evaluation mode, makes of these test samples."""


AnyCase = Case[Any]
