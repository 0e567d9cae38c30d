"""What LARS and LAMB share: one trust ratio for each parameter tensor, whole or sharded.

A sharded parameter (a DTensor, as under FSDP2, tensor parallelism or both) has one ratio, from norms over all its
shards: elementwise work is done on each rank's shard, and one small all-reduce joins the norms of all tensors of a
group and mesh. So with sharded parameters `step` is collective: every rank must call it, with gradients for the same
parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tightgrad.clip.local_norm import norms_in_float64
from tightgrad.clip.norm import over_shards
from tightgrad.core.check import check_choice
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.placement import Axes, is_dtensor, local_part, pending_axes, shard_axes

ADAPTATIONS = ("trust_ratio", "none")
IMPLEMENTATIONS = ("foreach", "single_tensor")

Group = dict[str, Any]


def tensor_norms(tensors: list[Tensor], placed_like: list[Tensor] | None = None) -> list[Tensor]:
    """Return the 2-norm of each tensor over all its shards: float64 scalars, the same on every rank, without a host
    sync.

    Collective if any tensor is sharded: one all-reduce for all tensors of a dtype that are cut along the same mesh
    axes, and one more for float64.

    Args:
        tensors: whole tensors, or this rank's pieces of them.
        placed_like: for each tensor, one that is sharded in the same way; None where `tensors` are whole or DTensors.
    """
    pieces = [local_part(tensor) for tensor in tensors]
    groups: dict[tuple[Axes, torch.dtype], list[int]] = {}
    for index, like in enumerate(placed_like or tensors):
        groups.setdefault((shard_axes(like), pieces[index].dtype), []).append(index)
    norms: dict[int, Tensor] = {}
    for (axes, dtype), indices in groups.items():
        found = over_shards(norms_in_float64([pieces[index] for index in indices], 2.0), axes, 2.0, dtype)
        norms |= zip(indices, found.unbind(), strict=True)
    return [norms[index] for index in range(len(pieces))]


def _as_dtensor(tensor: Tensor) -> Any:
    return tensor


def trust_ratios(
    params: list[Tensor], updates: list[Tensor], ratio: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """Return one ratio for each parameter, or 1 where weights or update are all zero, so that zero-initialised weights
    learn.

    Args:
        params: whole or sharded.
        updates: one for each parameter and sharded as it is: DTensors, or this rank's pieces.
        ratio: is given the norms of parameters and of updates, float64 vectors, and returns the ratios.
    """
    norms = tensor_norms([*params, *updates], placed_like=[*params, *params])
    weight_norms, update_norms = torch.stack(norms[: len(params)]), torch.stack(norms[len(params) :])
    moves = (weight_norms > 0) & (update_norms > 0)
    return list(torch.where(moves, ratio(weight_norms, update_norms), 1.0).unbind())


class LayerwiseOptimizer(Optimizer, ABC):
    """Adds the options `layer_adaptation` and `implementation` to each group of an optimizer."""

    def add_param_group(self, param_group: Group) -> None:
        """Check the settings of a group, with the defaults for what it leaves out, and add it.

        Raises:
            ConfigError: a value is out of its bounds.
            UnsupportedError: a parameter is complex, or a DTensor whose placement is not Replicate, Shard or
                _StridedShard.
        """
        settings = {**self.defaults, **param_group}
        check_choice("layer_adaptation", settings["layer_adaptation"], ADAPTATIONS)
        check_choice("implementation", settings["implementation"], IMPLEMENTATIONS)
        self._check_settings(settings)
        super().add_param_group(param_group)
        try:
            for param in self.param_groups[-1]["params"]:
                _check_placed(param)
        except UnsupportedError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient. Collective if they are sharded.

        Args:
            closure: computes the loss anew; as in torch.

        Raises:
            UnsupportedError: a gradient is sparse or complex, or a DTensor whose placement is not Replicate, Shard,
                _StridedShard or `Partial("sum")`; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    _check_dense(param.grad)
                    pending_axes(param.grad)
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if group["implementation"] == "foreach":
                for alike in _same_kind(params):
                    self._foreach_(alike, [_grad(param) for param in alike], group)
            else:
                for param in params:
                    self._single_tensor_(param, _grad(param), group)
        return loss

    @abstractmethod
    def _check_settings(self, group: Group) -> None:
        """Raise `ConfigError` if a setting is out of its bounds."""

    @abstractmethod
    def _single_tensor_(self, param: Tensor, grad: Tensor, group: Group) -> None:
        """Update one parameter: the reference."""

    @abstractmethod
    def _foreach_(self, params: list[Tensor], grads: list[Tensor], group: Group) -> None:
        """Update parameters of one device and dtype together; equal to the reference."""


def _check_placed(param: Tensor) -> None:
    if param.is_complex():
        raise UnsupportedError(
            f"a parameter of shape {tuple(param.shape)} is complex; hold its real and imaginary parts as one real "
            "parameter, and let the layer use torch.view_as_complex of it."
        )
    if pending_axes(param):
        raise UnsupportedError(
            f"a parameter of shape {tuple(param.shape)} is placed as {_as_dtensor(param).placements}, so that each "
            "rank holds a summand only; redistribute it to Shard or Replicate."
        )


def _check_dense(grad: Tensor) -> None:
    if grad.is_sparse:
        raise UnsupportedError("a gradient is sparse; build its layer with sparse=False.")
    if grad.is_complex():
        raise UnsupportedError("a gradient is complex; view the parameter as real (torch.view_as_real).")


def _grad(param: Tensor) -> Tensor:
    grad = param.grad
    assert grad is not None
    if is_dtensor(param):
        like = _as_dtensor(param)
        grad = _as_dtensor(grad).redistribute(like.device_mesh, like.placements)  # no-op if it lies as `param` does
    return grad


def _same_kind(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    groups: dict[tuple[Any, ...], list[Tensor]] = {}
    for param in params:
        mesh = _as_dtensor(param).device_mesh if is_dtensor(param) else None
        groups.setdefault((param.device, param.dtype, mesh), []).append(param)
    yield from groups.values()
