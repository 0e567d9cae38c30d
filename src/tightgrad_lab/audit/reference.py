"""The gradient of every micro-batch of every rank, in float64, at the weights that the loop had."""

import copy
import math
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # torch 2.9 to 2.14: the base of all kinds, without a public name

from tightgrad_lab.audit.given import loss_of
from tightgrad_lab.audit.specification import Specification
from tightgrad_lab.audit.watch import Part, Weights

SAME = 1e-9
"""Relative difference up to which two float64 losses of one micro-batch are the same."""


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch: the gradient of its mean loss, as one float64 vector, and its weight."""

    gradient: Tensor
    weight: float


class Reference:
    """The user's model in float64, without dropout.

    Args:
        specification: of the audited file.
        model: a fresh model, not yet touched by the loop.
    """

    def __init__(self, specification: Specification, model: nn.Module) -> None:
        self._specification = specification
        self._given = model
        self.frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self.names = tuple(name for name, _ in model.named_parameters() if name not in self.frozen)
        self.tied = _times_listed(model)
        self._use(torch.float64)

    def _use(self, dtype: torch.dtype | None) -> None:
        """Compute in this precision; in that of the model if None."""
        self._dtype = dtype
        self._model = copy.deepcopy(self._given)
        if dtype is not None:
            self._model = self._model.to(dtype)
        self._parameters = dict(self._model.named_parameters())
        for parameter in self._parameters.values():
            parameter.requires_grad_(parameter.is_floating_point())

    def fit(self, batch: Any) -> None:
        """Take the finest precision in which the loss can be computed: a forward may ask for one of its own."""
        for dtype in (torch.float32, None):
            try:
                with torch.no_grad():
                    self._loss(batch)
            except RuntimeError as error:
                if not any(word in str(error) for word in ("dtype", "scalar type", "same type")):
                    raise
                self._use(dtype)
            else:
                return

    def _loss(self, batch: Any) -> tuple[Tensor, float]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype or before)  # of what a forward makes itself, such as a first state
        try:
            return loss_of(self._specification, self._model, in_precision(copy.deepcopy(batch), self._dtype))
        finally:
            torch.set_default_dtype(before)

    def micro_batches(self, parts: Sequence[Part], batches: Sequence[Any]) -> list[MicroBatch]:
        """Gradients and weights of micro-batches: of each part's parameters at the weights that it was taken at."""
        pieces: list[list[Tensor]] = [[] for _ in batches]
        weights = [0.0] * len(batches)
        for part in _joined(parts):
            self._load(part.weights)
            parameters = [self._parameters[name] for name in part.names]
            for place, batch in enumerate(batches):
                loss, weights[place] = self._loss(batch)
                pieces[place] += _gradients(loss, parameters, empty=not weights[place])
        return [MicroBatch(torch.cat(piece), weight) for piece, weight in zip(pieces, weights, strict=True)]

    def losses(self, batches: Sequence[Any]) -> list[tuple[float, float]]:
        """Mean loss and weight of each micro-batch; BatchNorm uses what it has learned."""
        norms = [module for module in self._model.modules() if isinstance(module, _BatchNorm) and module.training]
        for module in norms:
            module.eval()
        with torch.no_grad():
            found = [self._loss(batch) for batch in batches]
        for module in norms:
            module.train()
        return [(float(loss), weight) for loss, weight in found]

    def is_random(self, batch: Any) -> bool:
        """Whether two calls of `loss` on the same micro-batch differ."""
        (first, _), (second, _) = self.losses([batch]) + self.losses([batch])
        return not (math.isnan(first) or math.isclose(first, second, rel_tol=SAME, abs_tol=SAME))

    def whole_model(self, weights: Weights) -> list[Part]:
        """All parameters that `build_model` leaves trainable, as one part."""
        return [Part(self.names, weights)]

    def pieces(self, vector: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The parts of a vector by parameter name: views."""
        sizes = [self._parameters[name].numel() for name in names]
        return dict(zip(names, vector.split(sizes), strict=True))

    @torch.no_grad()
    def _load(self, weights: Weights) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Neighbours that were taken at the same weights as one."""
    found: list[Part] = []
    for part in parts:
        if found and found[-1].weights is part.weights:
            found[-1] = Part(found[-1].names + part.names, part.weights)
        else:
            found.append(part)
    return found


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter], *, empty: bool) -> list[Tensor]:
    """Flat gradients; zeros where there is none, and where the mean is one of nothing."""
    if empty or not loss.requires_grad:
        return [torch.zeros(parameter.numel(), dtype=torch.float64) for parameter in parameters]
    found: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
    whole = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    ]
    return [(one.to_dense() if one.is_sparse else one).reshape(-1).double() for one in whole]


def in_precision(batch: Any, dtype: torch.dtype | None) -> Any:
    """The batch with its floating-point tensors in this precision, whatever holds them; as it is if None."""
    if dtype is None:
        return batch
    if isinstance(batch, Tensor):
        return batch.to(dtype) if batch.is_floating_point() else batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(in_precision(value, dtype) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(in_precision(value, dtype) for value in batch)
    if isinstance(batch, MutableMapping):
        for key, value in list(batch.items()):
            batch[key] = in_precision(value, dtype)
        return batch
    for name, value in list(getattr(batch, "__dict__", {}).items()):
        object.__setattr__(batch, name, in_precision(value, dtype))  # a copy, also one that is frozen
    return batch


def _times_listed(model: nn.Module) -> dict[str, int]:
    """How often each parameter is reached: more than once if it is tied."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    times: dict[str, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        times[names[id(parameter)]] = times.get(names[id(parameter)], 0) + 1
    return {name: count for name, count in times.items() if count > 1}
