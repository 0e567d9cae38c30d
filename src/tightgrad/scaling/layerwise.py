"""What LARS and LAMB share: one trust ratio for each parameter tensor, whole or sharded.

A sharded parameter (a DTensor, as under FSDP2) has one ratio, from norms over all its shards: elementwise work is done
on each rank's shard, and one small all-reduce of norms for all tensors of a group and mesh joins them. So with sharded
parameters `step` is collective: every rank must call it, with gradients for the same parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tightgrad.core.check import check_choice
from tightgrad.core.errors import UnsupportedError

ADAPTATIONS = ("trust_ratio", "none")
IMPLEMENTATIONS = ("foreach", "single_tensor")

Group = dict[str, Any]


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor, which scaling must tell without importing torch.distributed."""
    return hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """This rank's piece, sharing memory with `tensor`; of an ordinary tensor, itself."""
    piece: Tensor = _as_dtensor(tensor).to_local() if is_sharded(tensor) else tensor
    return piece


def placed_like(local: Tensor, whole: Tensor) -> Tensor:
    """Take `local` as this rank's piece of a tensor that lies as `whole` does."""
    if not is_sharded(whole):
        return local
    like = _as_dtensor(whole)
    shape, stride = whole.size(), whole.stride()
    placed: Tensor = like.from_local(local, like.device_mesh, like.placements, shape=shape, stride=stride)
    return placed


def tensor_norms(tensors: list[Tensor]) -> list[Tensor]:
    """The 2-norm of each tensor over all its shards: float64 scalars, the same on every rank, without a host sync.

    Collective if any tensor is sharded: one all-reduce for all tensors of the same mesh and placement.
    """
    # Squares of float32 numbers fit into float64, so they neither overflow nor underflow.
    norms = list(torch._foreach_norm(tensors, 2.0, torch.float64))
    lots: dict[tuple[Any, ...], list[int]] = {}
    for index, norm in enumerate(norms):
        if is_sharded(norm):
            lots.setdefault((_as_dtensor(norm).device_mesh, _as_dtensor(norm).placements), []).append(index)
    for (mesh, placements), indices in lots.items():
        pieces = torch.stack([local_part(norms[index]) for index in indices])
        joined = _as_dtensor(norms[indices[0]]).from_local(pieces, mesh, placements)
        for index, norm in zip(indices, joined.full_tensor().unbind(), strict=True):
            norms[index] = norm
    return norms


def _as_dtensor(tensor: Tensor) -> Any:
    return tensor


def trust_ratio(weight_norm: Tensor, update_norm: Tensor, ratio: Tensor) -> Tensor:
    """`ratio`, or 1 where weights or update are all zero, so that zero-initialised weights learn."""
    return torch.where((weight_norm > 0) & (update_norm > 0), ratio, 1.0)


class LayerwiseOptimizer(Optimizer, ABC):
    """An optimizer with options `layer_adaptation` and `implementation` in each group."""

    def add_param_group(self, param_group: Group) -> None:
        """Check the settings of a group, with the defaults for what it leaves out, and add it.

        Raises:
            ConfigError: a value is out of its bounds.
        """
        settings = {**self.defaults, **param_group}
        check_choice("layer_adaptation", settings["layer_adaptation"], ADAPTATIONS)
        check_choice("implementation", settings["implementation"], IMPLEMENTATIONS)
        self._check_settings(settings)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters that have a gradient. Collective if they are sharded.

        Args:
            closure: computes the loss anew; as in torch.

        Raises:
            UnsupportedError: a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                _check_dense(param.grad)
            if group["implementation"] == "foreach":
                for lot in _same_kind(params):
                    self._foreach_(lot, [_grad(param) for param in lot], group)
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


def _check_dense(grad: Tensor) -> None:
    if grad.is_sparse:
        raise UnsupportedError("a gradient is sparse; build its layer with sparse=False.")
    if grad.is_complex():
        raise UnsupportedError("a gradient is complex; view the parameter as real (torch.view_as_real).")


def _grad(param: Tensor) -> Tensor:
    grad = param.grad
    assert grad is not None
    if is_sharded(param):
        like = _as_dtensor(param)
        grad = _as_dtensor(grad).redistribute(like.device_mesh, like.placements)  # no-op if it lies as `param` does
    return grad


def _same_kind(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    lots: dict[tuple[Any, ...], list[Tensor]] = {}
    for param in params:
        mesh = _as_dtensor(param).device_mesh if is_sharded(param) else None
        lots.setdefault((param.device, param.dtype, mesh), []).append(param)
    yield from lots.values()
