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
        momentum: of the optimizer.
        weight_decay: of the optimizer.
        clip: the combinations' clipping.
        compress: the combinations' compression.
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


class Case(ABC, Generic[Samples]):
    """One case study. Cases do not know each other, nor ranks, nor plans."""

    id: ClassVar[str]
    metric: ClassVar[str]
    """Name of the value that `score` returns, such as "accuracy"."""

    @abstractmethod
    def settings(self, *, full: bool) -> Settings:
        """How to train: in minutes on two cores, or (full) as long as the case deserves."""

    @abstractmethod
    def load(self) -> tuple[Samples, Samples]:
        """Training and test samples, from the data embedded in the package."""

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model, drawn from torch's global generator."""

    @abstractmethod
    def optimizer(self, model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
        """The optimizer of all runs."""

    @abstractmethod
    def batch(self, samples: Samples, indices: Tensor) -> Batch:
        """The samples at `indices`, as the model takes them, on the CPU."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the batch, a scalar."""

    def weight(self, batch: Batch) -> float | Tensor:
        """What the batch's loss is averaged over: its number of samples, unless a case says otherwise."""
        return len(batch[0])

    @abstractmethod
    def count(self, model: nn.Module, batch: Batch) -> Tensor:
        """Statistics of the model's answers that add up over batches and ranks: float64, shape (n,)."""

    @abstractmethod
    def score(self, statistics: Tensor) -> float:
        """The metric, from the sum of all batches' statistics."""


AnyCase = Case[Any]
