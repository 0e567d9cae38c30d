"""Hugging Face Trainer: the same arguments, with `TightTrainer` in the place of `Trainer`.

    trainer = TightTrainer(plan=tg.Plan(compress=...), model=model, args=args, train_dataset=data)
    trainer.train()

`gradient_accumulation_steps` and `max_grad_norm` of the arguments become part of the plan. Every micro-batch counts
as many tokens as its loss is averaged over, also where the loss ignores `num_items_in_batch`, so ragged batches and
partial windows are exact; `weight` says so where the loss is not one that transformers is known to compute. It is a
subclass and not a callback alone: callbacks see neither the batches of a window before its first backward, nor the
loss. For a subclass of Trainer:
`class MyTrainer(TightTrainerMixin, OtherTrainer): ...`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from tightgrad.accumulate.additive import Forward, compare_with_halves
from tightgrad.accumulate.weights import Weight, batch_weights
from tightgrad.checkpoint.folder import save_state
from tightgrad.clip import GlobalNorm
from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.core.notices import warn
from tightgrad.core.placement import is_dtensor
from tightgrad.core.types import Grads
from tightgrad.integrations.accelerate_checks import check_even, check_supported, full_plan
from tightgrad.integrations.accelerated_optimizer import TightOptimizer
from tightgrad.integrations.external_loop import ExternalLoop, check_takes_loss_alone, with_clip
from tightgrad.integrations.transformers_loss import counts_labels, has_own_loss, told_of_columns, weight_of_loss
from tightgrad.pipeline.attach import attach
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.plan.plan import Plan
from tightgrad.records import RecordWriter

FOLDER = "tightgrad"
LOOKS = 8  # micro-batches on a GPU whose labels are counted
_OVERRIDE = (
    "Override compute_loss, which returns the loss of one batch, and leave training_step as it is; or call "
    "super().training_step(model, inputs) in yours, once for each batch, with no backward of your own."
)


class TightTrainerMixin:
    """Puts a plan on the model of the `Trainer` that comes after it. Every rank must make the same calls.

    Args:
        args: of the trainer.
        plan: what to run. Without `accumulate` and `clip` of its own it takes those of `TrainingArguments`.
        weight: what a batch counts: the number that its loss is averaged over. None counts it where transformers'
            loss is known (causal and masked language models, sequence to sequence, classification of tokens,
            sequences, images and audio, question answering, CTC with the reduction "mean"), and checks it on the first
            window: the loss of a batch must be the weighted mean of its halves' losses.
        seed: of all random numbers that methods draw.
        records: writers of the steps' records, as for `tightgrad.attach`.
        before_clip: edits the gradients once a step, as for `tightgrad.attach`.
        kwargs: of the trainer.

    Raises:
        ConfigError: the plan's micro-batches are not `gradient_accumulation_steps`, its clip is not `max_grad_norm`
            (whose default of 1.0 gives way to it), or no `weight` is given and the loss is not a known one.
        UnsupportedError: fp16, whose scaler would scale once more; DeepSpeed, FSDP1, DataParallel; parallelism that is
            not over data; or an optimizer that steps in backward.
    """

    def __init__(
        self,
        *args: Any,
        plan: Plan | None = None,
        weight: Weight | None = None,
        seed: int = 0,
        records: Sequence[RecordWriter] = (),
        before_clip: Callable[[Grads], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._check_supported()
        steps, max_norm = self.args.gradient_accumulation_steps, self.args.max_grad_norm  # type: ignore[attr-defined]
        self._max_norm = max_norm
        plan = full_plan(plan or Plan(), steps, self.accelerator.gradient_state.plugin_kwargs)  # type: ignore[attr-defined]
        self.plan = with_clip(plan, _arguments_clip(plan, max_norm), "TrainingArguments(max_grad_norm)")
        self.loop: ExternalLoop | None = None
        self._weight = weight_of_loss(self) if weight is None else told_of_columns(weight)
        self._checks_loss, self._has_told_of_drop = weight is None, False
        assert self.plan.accumulate is not None
        may_divide = has_own_loss(self) and self.plan.accumulate.loss_reduction == "mean"
        self._gives_items, self._looks_left = may_divide, LOOKS
        settings = {"weight": self._weight, "seed": seed, "records": records, "before_clip": before_clip}
        self._settings: dict[str, Any] = settings
        self.loss_is_scaled_for_ga = True  # backward scales

    def _check_supported(self) -> None:
        check_supported(self.accelerator)  # type: ignore[attr-defined]
        settings = self.args  # type: ignore[attr-defined]
        if settings.n_gpu > 1:
            raise UnsupportedError(
                f"{settings.n_gpu} devices in one process (DataParallel) average gradients in forward; start one "
                "process for each with `torchrun --nproc_per_node`."
            )
        optim = str(getattr(settings.optim, "value", settings.optim))
        if "lomo" in optim or optim.endswith("_layerwise"):
            raise UnsupportedError(
                f'optim="{optim}" steps each parameter during backward, where nothing is summed or clipped yet; take '
                f'optim="{optim.removesuffix("_layerwise") if optim.endswith("_layerwise") else "adamw_torch"}".'
            )

    @property
    def pipe(self) -> GradientPipeline:
        """Return the pipeline, from the beginning of `train`."""
        return self._running.pipe

    @property
    def _running(self) -> ExternalLoop:
        assert self.loop is not None
        return self.loop

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the trainer's schedule on the optimizer, which is prepared by now."""
        if not isinstance(self.optimizer, AcceleratedOptimizer):  # type: ignore[attr-defined]
            raise UnsupportedError(
                f"create_optimizer gave a {type(self.optimizer).__name__}; "  # type: ignore[attr-defined]
                "TightTrainer steps one torch.optim.Optimizer. For several, write the loop yourself with "
                "tightgrad.attach(model, [first, second], plan)."
            )
        _TrainerOptimizer.take(self.optimizer, None)  # type: ignore[attr-defined]
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        found = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)  # type: ignore[misc]
        optimizer, model, accelerator = self.optimizer, self.model_wrapped, self.accelerator  # type: ignore[attr-defined]
        self.loop = loop = ExternalLoop(
            lambda: attach(model, optimizer.optimizer, self.plan, **self._settings), "Leave the steps to the trainer."
        )
        if resume_from_checkpoint is not None:
            loop.load(Path(resume_from_checkpoint) / FOLDER)
        check_even(accelerator, self.args.gradient_accumulation_steps, train_dataloader, loop)  # type: ignore[attr-defined]
        accelerator.backward = self._backward
        accelerator.clip_grad_norm_ = lambda *args, **kwargs: loop.later_norm()
        callbacks = self.callback_handler.callbacks  # type: ignore[attr-defined]
        optimizer.loop = loop
        optimizer.keeps_grads = any(
            type(one).on_optimizer_step is not TrainerCallback.on_optimizer_step for one in callbacks
        )
        return found

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], None]:
        """Read a window's batches, which are weighed and counted over all ranks."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if self.args.max_grad_norm != self._max_norm:  # type: ignore[attr-defined]
            raise UsageError(
                f"TrainingArguments.max_grad_norm was changed from {self._max_norm} to "
                f"{self.args.max_grad_norm} after TightTrainer was made, "  # type: ignore[attr-defined]
                f"and the plan clips with {self.plan.clip}. Set it before, or pass TightTrainer(plan=Plan(clip=...)); "
                "a bound that follows the norms is tg.clip.AutoClip or tg.clip.ZClip."
            )
        if self._running.num_backwards and not self._has_told_of_drop:
            self._has_told_of_drop = True
            warn(
                f"Trainer took no step after {self._running.num_backwards} batches, whose gradients are dropped: their "
                "epoch ended within a window. Either a callback ended it, or the dataset has no length and shows its "
                "end too late: give it a __len__, or leave out its last batches that do not fill "
                "gradient_accumulation_steps. This is said once.",
                2,
            )
        self._running.abandon()
        if self._checks_loss:
            self._check_loss(batches)
        if batches:
            self._running.open(batches, self.args.gradient_accumulation_steps)  # type: ignore[attr-defined]
        return batches, None

    def _check_loss(self, batches: list[Any]) -> None:
        """On the first window; not where ranks hold parts of the weights, whose forwards have to be as many."""
        self._checks_loss = False
        model = self.model  # type: ignore[attr-defined]
        if any(is_dtensor(parameter) for parameter in model.parameters()):
            return

        def losses_of(batch: Any) -> dict[str, Tensor]:
            with self.compute_loss_context_manager():  # type: ignore[attr-defined]
                return {"loss": self.compute_loss(model, self._prepare_inputs(dict(batch)))}  # type: ignore[attr-defined]

        def weigh(batch: Any) -> dict[str, float]:
            return batch_weights(batch, self._weight, ("loss",))

        assert self.plan.accumulate is not None
        forward = Forward(losses_of, weigh, model, self.plan.accumulate.loss_reduction == "mean")
        found = compare_with_halves(batches, forward, self.pipe.adapter.collective)
        if found.kind == "differs":
            raise UsageError(
                f"{found.message}: the loss is not averaged over these items, and micro-batches would not add up to "
                "the big batch. Pass TightTrainer(weight=lambda batch: ...) with the number that it is averaged over; "
                "with a weight of your own nothing is checked."
            )

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run one micro-batch; return what its loss counts for in the window's mean loss."""
        with self._running.micro_batch(), _without_count_of_ranks(self.args):  # type: ignore[attr-defined]
            items = self._items(inputs)
            loss: Tensor = super().training_step(model, inputs, items)  # type: ignore[misc]
        share = self._running.loss_share
        return loss * share if share else torch.zeros_like(loss)

    def _items(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return the weight for a loss that is a sum over labels; None, as Trainer has it, if it counts anything else.

        To count labels on a GPU makes the host wait, so that only the first micro-batches are looked at there.
        """
        weight, labels = self._running.weight, inputs.get("labels")
        on_cpu = not isinstance(labels, Tensor) or labels.is_cpu
        if self._gives_items and weight and (on_cpu or self._looks_left):
            self._looks_left -= not on_cpu
            self._gives_items = counts_labels(weight, inputs)
        if not self._gives_items:
            return None
        return torch.full((), weight or 1.0, device=self.args.device)  # type: ignore[attr-defined]

    def _backward(self, loss: Tensor, **kwargs: Any) -> None:
        check_takes_loss_alone((), kwargs)
        loop = self._running
        if loop.num_backwards >= loop.position:
            raise UsageError(
                "self.accelerator.backward(loss) was called outside of TightTrainer's own training_step, or twice "
                f"within it. {_OVERRIDE}"
            )
        self.pipe.backward(loss)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._running.tell_of_drop("a callback has stopped the training")
        self._running.abandon()
        return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)  # type: ignore[misc]
        if self._running.window is not None:
            self._save_without_window(Path(output_dir) / FOLDER)
        else:
            self.pipe.save(Path(output_dir) / FOLDER)

    def _save_without_window(self, folder: Path) -> None:
        """Save what was there when the open window began: Trainer goes on with the first batch of that step."""
        self.pipe.wait_for_save()
        collective = self.pipe.adapter.collective
        save_state(lambda: {**self.pipe.state_dict(), "open_window": None}, folder, collective)


@contextmanager
def _without_count_of_ranks(arguments: Any) -> Iterator[None]:
    """Keep Trainer from multiplying a loss that was divided by `num_items_in_batch` by the number of ranks: the number
    given here is that of one rank's micro-batch.
    """
    before, arguments.average_tokens_across_devices = arguments.average_tokens_across_devices, False
    try:
        yield
    finally:
        arguments.average_tokens_across_devices = before


def _arguments_clip(plan: Plan, max_norm: float | None) -> GlobalNorm | None:
    """The clipping that the arguments ask for beside this plan. Their default of 1.0 gives way to the plan's clip, as
    it cannot be told from an argument that was left out.
    """
    if not max_norm or max_norm < 0:
        return None
    is_default = max_norm == TrainingArguments.__dataclass_fields__["max_grad_norm"].default
    return None if is_default and plan.clip is not None else GlobalNorm(float(max_norm))


class _TrainerOptimizer(TightOptimizer):
    """Is stepped by the trainer once a window, whose micro-batches must all have had their backward by then."""

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        loop = self.loop
        if loop is not None and loop.window is not None and loop.num_backwards < len(loop.window):
            raise UsageError(
                f"{loop.num_backwards} of the window's {len(loop.window)} batches had their backward through the "
                "pipeline when the trainer came to its step: a training_step other than TightTrainer's, or one of "
                f"another trainer behind TightTrainerMixin, runs loss.backward() itself. {_OVERRIDE}"
            )
        super().step(closure)


class TightTrainer(TightTrainerMixin, Trainer):
    """Is a `transformers.Trainer` whose gradient path is TightGrad's; `TightTrainerMixin` has the arguments."""
