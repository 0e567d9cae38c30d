"""What a Hugging Face model's loss is averaged over, where that is known: recognised by the loss function that its
`forward` calls, and otherwise asked for.
"""

import dis
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.loss import loss_utils as known
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tightgrad.accumulate.weights import Weight, num_samples
from tightgrad.core.errors import ConfigError, UsageError

IGNORED = -100


def weight_of_loss(trainer: Trainer) -> Weight:
    """Return what counts the items that the loss of a batch is averaged over, as `Trainer.compute_loss` computes it.

    Raises:
        ConfigError: it is not known, so `weight` has to be given.
    """
    model = base_of(trainer.model)
    if _overrides_loss(trainer):
        raise _unknown(f"{type(trainer).__name__} has a compute_loss of its own")
    if trainer.compute_loss_func is not None:
        raise _unknown("compute_loss_func computes it")
    if trainer.label_smoother is None:
        return _weight_of_model(model)
    shifts = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    return lambda batch: count_labels(batch, shifts=shifts) if "labels" in batch else _weight_of_model(model)(batch)


def told_of_columns(weight: Weight) -> Weight:
    """Return the user's `weight`, which says so where it looks for a column that Trainer has left out."""

    def counted(batch: Any) -> Any:
        try:
            return weight(batch)
        except KeyError as error:
            raise ConfigError(
                f"weight(batch) looks for {error}, but the batch has {', '.join(map(repr, batch))}: Trainer leaves out "
                "columns that the model's forward does not take. Count by those that are there, or pass "
                "TrainingArguments(remove_unused_columns=False) and take the column out of the inputs in compute_loss."
            ) from error

    return counted


def has_own_loss(trainer: Trainer) -> bool:
    """Tell whether the user computes the loss, perhaps divided by `num_items_in_batch`."""
    return _overrides_loss(trainer) or trainer.compute_loss_func is not None


def _overrides_loss(trainer: Trainer) -> bool:
    return not type(trainer).compute_loss.__module__.startswith("transformers.")


def base_of(model: Any) -> Any:
    """Return the model that PEFT or torch.compile has wrapped, or the model itself."""
    model = getattr(model, "_orig_mod", model)  # torch 2.9 to 2.14: the module in torch.compile's OptimizedModule
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _weight_of_model(model: nn.Module) -> Weight:
    """By the function that `forward` calls once as `self.loss_function`; models that were written before there was one
    compute the mean of their kind in `forward`.
    """
    name, kind, config = type(model).__name__, getattr(model, "loss_type", None), getattr(model, "config", None)
    forward = inspect.unwrap(model.forward)
    code = inspect.unwrap(getattr(forward, "__func__", forward))  # that runs, also where it was put on this one model
    names = [instruction.argval for instruction in dis.get_instructions(code)]
    function = getattr(model, "loss_function", None) if names.count("loss_function") == 1 else None
    said = f"with {getattr(function, '__name__', function)}" if function else f"by itself (loss_type {kind})"
    is_decoder = not getattr(config, "is_encoder_decoder", False)
    if function is None and type(model).__module__.startswith("transformers.") and "CrossEntropyLoss" in names:
        function = known.LOSS_MAPPING.get(str(kind))
        if function is known.ForCausalLMLoss and (is_decoder or kind != "ForConditionalGeneration"):
            function = None
    if function is known.LOSS_MAPPING["ForCTC"]:
        return _weight_of_ctc(config)
    if function not in _COUNTS:
        raise _unknown(f"{name} computes it {said}")
    if "load_balancing_loss_func" in names and _asks_for_router(config):
        raise _unknown(f"{name} adds the load balancing of its experts (output_router_logits=True)")
    shifts = function is known.ForCausalLMLoss and is_decoder
    return partial(count_labels, shifts=True) if shifts else _COUNTS[function]


def _asks_for_router(config: Any) -> bool:
    return any(getattr(one, "output_router_logits", False) for one in (config, config.get_text_config()))


def _weight_of_ctc(config: Any) -> Weight:
    reduction = getattr(config, "ctc_loss_reduction", None)
    if reduction == "mean":
        return num_samples
    raise _unknown(
        f'the CTC loss has ctc_loss_reduction="{reduction}"; set model.config.ctc_loss_reduction = "mean" (over '
        "sequences), which is counted by itself"
    )


def count_labels(batch: Mapping[str, Any], *, shifts: bool = False) -> Tensor:
    """Count labels other than -100; without the first of each sequence if the loss `shifts` them."""
    shifted = batch.get("shift_labels")
    if shifts and isinstance(shifted, Tensor):
        return shifted.ne(IGNORED).sum()
    labels = _tensor_of(batch, "labels")
    return (labels[..., 1:] if shifts else labels).ne(IGNORED).sum()


def counts_labels(weight: float, batch: Mapping[str, Any]) -> bool:
    """Tell whether a weight is the number of labels, as Trainer's `num_items_in_batch` is: then a loss that is a sum
    over them, divided by that number, is a mean.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return False
    return weight in (int(count_labels(batch)), int(count_labels(batch, shifts=labels.dim() > 1)))


def count_classes(batch: Mapping[str, Any]) -> Any:
    """Count samples whose class is not -100; all samples for regression and several labels each."""
    labels = _tensor_of(batch, "labels")
    one_each = labels.numel() == len(labels) and not labels.is_floating_point()
    return labels.ne(IGNORED).sum() if one_each else len(labels)


def count_answers(batch: Mapping[str, Any]) -> Tensor:
    """Count samples whose answer lies in the text: the loss leaves out positions at its end or behind.

    Raises:
        UsageError: an answer begins in the text and ends behind, so that the two halves of the loss count differently.
    """
    length = _tensor_of(batch, "input_ids").shape[1]
    starts, ends = (_tensor_of(batch, name).flatten() < length for name in ("start_positions", "end_positions"))
    if int(starts.sum()) != int(ends.sum()):
        raise UsageError(
            f"of the answers in a batch {int(starts.sum())} begin and {int(ends.sum())} end in the text of {length} "
            "tokens; the loss averages the two over different numbers, which no weight makes right. Set both positions "
            f"of a cut answer to {length} (left out) or to 0."
        )
    return starts.sum()


_COUNTS: dict[Any, Weight] = {
    known.ForCausalLMLoss: count_labels,
    known.ForMaskedLMLoss: count_labels,
    known.ForTokenClassification: count_labels,
    known.ForSequenceClassificationLoss: count_classes,
    known.ForQuestionAnsweringLoss: count_answers,
}


def _tensor_of(batch: Mapping[str, Any], name: str) -> Tensor:
    value = batch.get(name)
    if not isinstance(value, Tensor):
        raise ConfigError(
            f"a batch has no tensor {name!r} to count its loss's items by; let the collator give it, or pass "
            "TightTrainer(weight=lambda batch: ...)."
        )
    return value


def _unknown(reason: str) -> ConfigError:
    return ConfigError(
        f"it is not known what the loss is averaged over: {reason}. Pass TightTrainer(weight=...) with that number: "
        'weight=lambda batch: (batch["labels"] != -100).sum() for a mean over labels, weight=lambda batch: '
        'len(batch["labels"]) for a mean over sequences. A sum of means over different numbers (MLM + NSP) has no '
        "such number."
    )
