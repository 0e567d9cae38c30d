"""The gradient of every micro-batch of every rank, in float64, at the weights that the loop had."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tightgrad_lab.audit.specification import Specification


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
        self._loss = specification.loss
        self._model = copy.deepcopy(model).double()
        self.trainable = {name: p for name, p in self._model.named_parameters() if p.requires_grad}
        self.tied = _times_listed(self._model)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take these weights."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(weights[name])

    def micro_batch(self, batch: Any) -> MicroBatch:
        """Gradient and weight of one micro-batch."""
        loss, weight = self._loss(self._model, as_double(batch))
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, list(self.trainable.values()), allow_unused=True)
        whole = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self.trainable.values(), gradients, strict=True)
        ]
        return MicroBatch(torch.cat([gradient.reshape(-1) for gradient in whole]), float(weight))

    def vector(self, gradient: dict[str, Tensor]) -> Tensor:
        """A gradient by name as one vector, in this model's order."""
        return torch.cat([gradient[name].reshape(-1) for name in self.trainable])

    def pieces(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a vector by parameter name: views."""
        sizes = [parameter.numel() for parameter in self.trainable.values()]
        return dict(zip(self.trainable, vector.split(sizes), strict=True))


def without_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout rate to 0, so that two runs of a batch agree."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0
    return model


def as_double(batch: Any) -> Any:
    """The batch with its floating-point tensors in float64."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: as_double(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(as_double(value) for value in batch)
    return batch


def _times_listed(model: nn.Module) -> dict[str, int]:
    """How often each parameter is reached: more than once if it is tied."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    times: dict[str, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        times[names[id(parameter)]] = times.get(names[id(parameter)], 0) + 1
    return {name: count for name, count in times.items() if count > 1}
