"""Hugging Face Trainer: the same arguments, with `TightTrainer` in the place of `Trainer`.

    trainer = TightTrainer(plan=tg.Plan(compress=...), model=model, args=args, train_dataset=data)
    trainer.train()

`gradient_accumulation_steps` and `max_grad_norm` of the arguments become part of the plan. Every micro-batch counts
as many tokens as its loss is averaged over, also where the loss ignores `num_items_in_batch`, so ragged batches and
partial windows are exact. It is a subclass and not a callback alone: callbacks see neither the batches of a window
before its first backward, nor the loss. For a subclass of Trainer:
`class MyTrainer(TightTrainerMixin, OtherTrainer): ...`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from tightgrad.accumulate.weights import Weight, num_samples
from tightgrad.clip import GlobalNorm
from tightgrad.core.errors import UnsupportedError
from tightgrad.integrations.accelerated_optimizer import TightOptimizer
from tightgrad.integrations.foreign import ForeignLoop, with_clip, with_micro_batches
from tightgrad.pipeline.attach import attach
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.plan import Plan

FOLDER = "tightgrad"
IGNORED = -100


class TightTrainerMixin:
    """To be put before a `Trainer`. Every rank must make the same calls.

    Args:
        args: of the trainer.
        plan: what to run. Without `accumulate` and `clip` of its own it takes those of `TrainingArguments`.
        weight: what a batch counts: the number that its loss is averaged over; None counts labels other than -100
            (those that are predicted, where the loss shifts them), or samples if a batch has no labels.
        seed: of all random numbers that methods draw.
        kwargs: of the trainer.

    Raises:
        ConfigError: the plan's micro-batches are not `gradient_accumulation_steps`.
        UnsupportedError: fp16, whose scaler would scale once more, or DeepSpeed.
    """

    def __init__(
        self, *args: Any, plan: Plan | None = None, weight: Weight | None = None, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._check_supported()
        settings = self.args  # type: ignore[attr-defined]
        plan = with_micro_batches(plan or Plan(), settings.gradient_accumulation_steps, "gradient_accumulation_steps")
        self.plan = with_clip(plan, _arguments_clip(plan, settings.max_grad_norm), "TrainingArguments(max_grad_norm)")
        self.loop: ForeignLoop | None = None
        self._weight = weight or self._count_labels
        self._seed = seed
        self.loss_is_scaled_for_ga = True  # backward scales

    def _check_supported(self) -> None:
        accelerator = self.accelerator  # type: ignore[attr-defined]
        if accelerator.scaler is not None:
            raise UnsupportedError("fp16=True brings a GradScaler of its own; take bf16=True, or float32.")
        if self.is_deepspeed_enabled:  # type: ignore[attr-defined]
            raise UnsupportedError("DeepSpeed owns the gradient path itself; use DDP or FSDP2 with TightTrainer.")

    @property
    def pipe(self) -> GradientPipeline:
        """The pipeline, from the beginning of `train`."""
        assert self.loop is not None
        return self.loop.pipe

    def _count_labels(self, batch: Any) -> Any:
        labels = batch.get("shift_labels", batch.get("labels")) if isinstance(batch, Mapping) else None
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            return num_samples(batch)
        shifts = self._loss_shifts_labels and "shift_labels" not in batch  # type: ignore[attr-defined]
        return (labels[..., 1:] if shifts and labels.dim() > 1 else labels).ne(IGNORED).sum()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the trainer's; the optimizer is prepared by now."""
        TightOptimizer.take(self.optimizer, None)  # type: ignore[attr-defined]
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        found = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[misc]
        optimizer = self.optimizer.optimizer  # type: ignore[attr-defined]
        pipe = attach(self.model_wrapped, optimizer, self.plan, weight=self._weight, seed=self._seed)  # type: ignore[attr-defined]
        self.loop = ForeignLoop(pipe)
        if resume_from_checkpoint is not None and (Path(resume_from_checkpoint) / FOLDER).exists():
            pipe.load(Path(resume_from_checkpoint) / FOLDER)
        self.accelerator.backward = self._backward  # type: ignore[attr-defined]
        self.optimizer.loop = self.loop  # type: ignore[attr-defined]
        return found

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """A window's batches, which are weighed and counted over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        assert self.loop is not None
        self.loop.abandon()
        if batches:
            self.loop.open(batches)
        return batches, None

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; returns what it counts for in the window's mean loss."""
        assert self.loop is not None
        with self.loop.micro_batch():
            loss: Tensor = super().training_step(model, inputs, None)  # type: ignore[misc]
        share = self.loop.loss_share
        return loss * share if share else torch.zeros_like(loss)

    def _backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.pipe.backward(loss)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        assert self.loop is not None
        return self.loop.later_norm()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        return self._clip_grad_norm(model) if grad_norm is None else grad_norm

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        self.pipe.save(Path(output_dir) / FOLDER)


def _arguments_clip(plan: Plan, max_norm: float | None) -> GlobalNorm | None:
    """The clipping that the arguments ask for beside this plan. Their default of 1.0 gives way to the plan's clip, as
    it cannot be told from an argument that was left out.
    """
    if not max_norm or max_norm < 0:
        return None
    is_default = max_norm == TrainingArguments.__dataclass_fields__["max_grad_norm"].default
    return None if is_default and plan.clip is not None else GlobalNorm(float(max_norm))


class TightTrainer(TightTrainerMixin, Trainer):
    """`transformers.Trainer` whose gradient path is TightGrad's."""
