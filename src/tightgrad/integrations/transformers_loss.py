"""What a Hugging Face model's loss is averaged over, where that is known: recognised by the loss function that its
`forward` calls, and otherwise asked for.
"""

import dis
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.loss import loss_utils as known
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tightgrad.accumulate.weights import Weight, num_samples
from tightgrad.core.errors import ConfigError, UsageError

IGNORED = -100
CLASSES = ("ForSequenceClassification", "ForImageClassification", "ForVideoClassification", "ForAudioClassification")


def weight_of_loss(trainer: Trainer) -> Weight:
    """The number that the loss of a batch is averaged over, as `Trainer.compute_loss` computes it.

    Raises:
        ConfigError: it is not known, so `weight` has to be given.
    """
    model = base_of(trainer.model)
    name = type(model).__name__
    if not type(trainer).compute_loss.__module__.startswith("transformers."):
        raise _unknown(f"{type(trainer).__name__} has a compute_loss of its own")
    if trainer.compute_loss_func is not None:
        raise _unknown("compute_loss_func computes it")
    if trainer.label_smoother is not None:
        shifts = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return lambda batch: count_labels(batch, shifts=shifts) if "labels" in batch else _weight_of_model(model)(batch)
    return _weight_of_model(model)


def base_of(model: Any) -> Any:
    """The model that PEFT or torch.compile has wrapped, or the model itself."""
    model = getattr(model, "_orig_mod", model)  # torch 2.9 to 2.14: the module in torch.compile's OptimizedModule
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _forward_of(model: nn.Module) -> Any:
    """The function that runs, also where it was put on this one model."""
    forward = inspect.unwrap(model.forward)
    return inspect.unwrap(getattr(forward, "__func__", forward))


def _weight_of_model(model: nn.Module) -> Weight:
    function = loss_function_of(model)
    if function is not None:
        return _weight_of_function(model, function)
    return _weight_of_own_loss(model)


def loss_function_of(model: nn.Module) -> Callable[..., Any] | None:
    """The function that the model's `forward` calls once as `self.loss_function`, if it does."""
    forward = _forward_of(model)
    loads = sum(instruction.argval == "loss_function" for instruction in dis.get_instructions(forward))
    return getattr(model, "loss_function", None) if loads == 1 else None


def _weight_of_function(model: nn.Module, function: Callable[..., Any]) -> Weight:
    config: Any = model.config
    if function is known.ForCausalLMLoss:
        if _adds_router_loss(model):
            raise _unknown(f"{type(model).__name__} adds the load balancing of its experts (output_router_logits=True)")
        shifts = not getattr(config, "is_encoder_decoder", False)
        return lambda batch: count_labels(batch, shifts=shifts)
    if function in (known.ForMaskedLMLoss, known.ForTokenClassification):
        return lambda batch: count_labels(batch, shifts=False)
    if function is known.ForSequenceClassificationLoss:
        return count_classes
    if function is known.ForQuestionAnsweringLoss:
        return count_answers
    if function is known.LOSS_MAPPING.get("ForCTC"):
        return _weight_of_ctc(config)
    raise _unknown(f"{type(model).__name__} computes it with {getattr(function, '__name__', function)}")


def _weight_of_own_loss(model: nn.Module) -> Weight:
    """Of a model of transformers that computes its loss in `forward`: the mean of its kind, as they were written
    before there was `loss_function`.
    """
    name, kind = type(model).__name__, getattr(model, "loss_type", None)
    forward = _forward_of(model).__code__.co_names
    if not type(model).__module__.startswith("transformers.") or "CrossEntropyLoss" not in forward:
        raise _unknown(f"{name} computes it by itself")
    if _adds_router_loss(model):
        raise _unknown(f"{name} adds the load balancing of its experts (output_router_logits=True)")
    if kind in ("ForMaskedLM", "ForTokenClassification"):
        return lambda batch: count_labels(batch, shifts=False)
    if kind == "ForConditionalGeneration" and getattr(model.config, "is_encoder_decoder", False):
        return lambda batch: count_labels(batch, shifts=False)
    if kind in CLASSES:
        return count_classes
    if kind == "ForQuestionAnswering":
        return count_answers
    raise _unknown(f"{name} computes it by itself (loss_type {kind})")


def _adds_router_loss(model: nn.Module) -> bool:
    forward = _forward_of(model).__code__.co_names
    config: Any = model.config
    text = config.get_text_config()
    asked = getattr(config, "output_router_logits", False) or getattr(text, "output_router_logits", False)
    return bool(asked) and "load_balancing_loss_func" in forward


def _weight_of_ctc(config: Any) -> Weight:
    reduction = getattr(config, "ctc_loss_reduction", None)
    if reduction == "mean":
        return num_samples
    raise _unknown(
        f'the CTC loss has ctc_loss_reduction="{reduction}"; set model.config.ctc_loss_reduction = "mean" (over '
        "sequences), which is counted by itself"
    )


def count_labels(batch: Mapping[str, Any], *, shifts: bool) -> Tensor:
    """Labels other than -100; without the first of each sequence if the loss `shifts` them."""
    shifted = batch.get("shift_labels")
    if shifts and isinstance(shifted, Tensor):
        return shifted.ne(IGNORED).sum()
    labels = _tensor_of(batch, "labels")
    return (labels[..., 1:] if shifts else labels).ne(IGNORED).sum()


def count_classes(batch: Mapping[str, Any]) -> Any:
    """Samples whose class is not -100; all samples for regression and several labels each."""
    labels = _tensor_of(batch, "labels")
    one_each = labels.numel() == len(labels) and not labels.is_floating_point()
    return labels.ne(IGNORED).sum() if one_each else len(labels)


def count_answers(batch: Mapping[str, Any]) -> Tensor:
    """Samples whose answer lies in the text: the loss leaves out positions at its end or behind.

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
