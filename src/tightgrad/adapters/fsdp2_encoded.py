"""FSDP2 whose reduce-scatter is handed over: each FSDP module's whole gradients, when its backward has come to its end.

torch hands over a flat buffer. What lies where follows from the shapes: row r of it holds, one parameter after the
other, the rows of each gradient that rank r will keep, padded to equal length. So gradients are known by name, and what
is remembered has the parameters' own shapes, on any number of ranks and under any wrapper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tightgrad.adapters.fsdp2 import FSDP2Adapter, like_sharded, local_part
from tightgrad.adapters.parts.fsdp2_torch import fsdp_modules, param_groups, set_reduces_unused
from tightgrad.adapters.parts.torch_private import check_has, unknown_torch
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

WHAT = "compress under fully_shard (FSDP2)"

# Of each group and parameter, private in torch 2.9 to 2.14.
_OF_GROUP = ("_reduce_scatter_comm", "_all_reduce_hook")
_OF_PARAM = ("_orig_size", "fsdp_placement")


@dataclass(frozen=True, slots=True)
class Unit:
    """Gradients of one FSDP module.

    Attributes:
        rows: this rank's gradients by parameter name, in one dimension each, as many pieces as ranks: piece r is
            what rank r keeps. Zeros where this rank did not use the parameter.
        shapes: of the whole gradients.
        used: names of those that this rank used in this window.
        shards: where the sums that this rank keeps go, in one dimension.
        output: all of them and their padding.
    """

    rows: dict[str, list[Tensor]]
    shapes: dict[str, torch.Size]
    used: frozenset[str]
    shards: Grads
    output: Tensor


UnitReceiver = Callable[[Unit], None]


class HandedOver:
    """The reduce-scatter of one FSDP module; `handed_over` makes one that torch takes."""

    def __init__(self, adapter: FSDP2EncodedAdapter, params: list[tuple[str, FSDPParam]]) -> None:
        self._adapter = adapter
        self._params = params

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an empty buffer for torch."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> None:
        """Sum this rank's shards over ranks into `output_tensor`."""
        world_size = group.size()
        table = input_tensor.view(world_size, -1)
        rows: dict[str, list[Tensor]] = {}
        shards: Grads = {}
        shapes: dict[str, torch.Size] = {}
        start = 0
        for name, param in self._params:
            if not hasattr(param, "_unsharded_param"):
                continue  # no forward has used it yet
            shapes[name] = param._orig_size
            numels = shard_numels(param._orig_size, world_size)
            rows[name] = [table[rank, start : start + numel] for rank, numel in enumerate(numels)]
            shards[name] = output_tensor[start : start + numels[group.rank()]]
            start += max(numels)
        if start != table.shape[1]:
            raise UnsupportedError(
                f"FSDP2 hands over {table.shape[1]} elements a rank where {start} were expected for "
                f"{', '.join(rows)}; this version of torch lays them out otherwise."
            )
        self._adapter.hand_over(Unit(rows, shapes, self._adapter.used(rows), shards, output_tensor))


@cache
def handed_over() -> type[HandedOver]:
    """Return the class whose objects torch takes for a reduce-scatter: torch's own is imported only now.

    Raises:
        UnsupportedError: this version of torch has no such class.
    """
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter  # private in torch 2.9 to 2.14
    except ImportError as error:
        raise unknown_torch(str(error), WHAT) from error
    return type("HandedOver", (HandedOver, ReduceScatter), {})


class BetweenNodes:
    """The all-reduce hook of one FSDP module, known by its class.

    Args:
        take: sums this rank's shards over nodes, in place.
    """

    def __init__(self, take: Callable[[Tensor], None]) -> None:
        self._take = take

    def __call__(self, reduce_output: Tensor) -> None:
        """Called by FSDP2 after the reduce-scatter."""
        self._take(reduce_output)


def shard_numels(size: torch.Size, world_size: int) -> list[int]:
    """Elements that each rank keeps of a tensor that is cut along its first dimension as `torch.chunk` does."""
    rows = -(-size[0] // world_size)
    row_numel = size.numel() // size[0] if size[0] else 0
    return [row_numel * (min(size[0], rows * (rank + 1)) - min(size[0], rows * rank)) for rank in range(world_size)]


class FSDP2EncodedAdapter(FSDP2Adapter):
    """A module under `fully_shard` on a one-dimensional mesh, that hands over its gradients before they are sharded.

    Gradients are summed, not averaged, once a window.

    Attributes:
        background: the ranks, as a process group of its own.

    Raises:
        UnsupportedError: the mesh has two dimensions, or parameters are not sharded along their first dimension.
    """

    background: Collective

    def __init__(self, model: nn.Module, collective: Collective | None = None) -> None:
        super().__init__(model, "last", collective)
        self.divisor = 1
        self._receiver: UnitReceiver | None = None
        for module in self._modules:
            _check_unit(module, self._names)

    def connect(self) -> None:
        """Make the group for what is handed over."""
        super().connect()
        self.background = self.collective.split([range(self.collective.world_size)])

    def serve(self, receive: UnitReceiver) -> None:
        """Hand over to `receive` from now on."""
        self._receiver = receive
        for module in self._modules:
            params = [(self._names[id(p.sharded_param)], p) for p in unit_params(module) if self._is_trained(p)]
            self._install(module, params)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def _install(self, module: FSDPModule, params: list[tuple[str, FSDPParam]]) -> None:
        module.set_custom_reduce_scatter(handed_over()(self, params))  # type: ignore[arg-type]

    def hand_over(self, unit: Unit) -> None:
        """Called by the modules' reduce-scatters."""
        assert self._receiver is not None
        self._receiver(unit)

    def used(self, names: Mapping[str, object]) -> frozenset[str]:
        """Those that this rank used in this window."""
        return frozenset(name for name in names if name in self._used)

    def shard_numels(self, name: str) -> list[int]:
        """Elements of a parameter that each rank keeps."""
        return shard_numels(self.parameters[name].shape, self.collective.world_size)

    def as_gradient(self, name: str, shard: Tensor) -> Tensor:
        """This rank's shard, of one dimension, as the gradient of a parameter."""
        parameter = self.parameters[name]
        return like_sharded(parameter, shard.view(local_part(parameter).shape).to(parameter.dtype))

    def release(self) -> None:
        """Let FSDP2 reduce by itself again."""
        _restore(self._modules)
        super().release()

    def sent_nbytes(self) -> int:
        """What is sent is counted where it is sent."""
        return 0


def unit_params(module: FSDPModule) -> list[FSDPParam]:
    """The parameters that a module reduces, in the order in which it does."""
    return [param for group in param_groups(module) for param in group.fsdp_params]


def restore_reduce_scatter(model: nn.Module) -> None:
    """Undo what `FSDP2EncodedAdapter` did to a module."""
    _restore(fsdp_modules(model))


def _restore(modules: Iterable[FSDPModule]) -> None:
    for module in modules:
        groups = param_groups(module)
        is_encoded = any(isinstance(getattr(group, "_reduce_scatter_comm", None), HandedOver) for group in groups)
        is_between_nodes = any(isinstance(getattr(group, "_all_reduce_hook", None), BetweenNodes) for group in groups)
        if is_encoded:
            from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter  # torch 2.9 to 2.14

            module.set_custom_reduce_scatter(DefaultReduceScatter())
        if is_between_nodes:
            module.set_all_reduce_hook(None)  # type: ignore[arg-type]
        if is_encoded or is_between_nodes:
            module.set_gradient_divide_factor(None)  # type: ignore[arg-type]
            module.set_force_sum_reduction_for_comms(False)
            set_reduces_unused([module], False)


def _check_unit(module: FSDPModule, names: Mapping[int, str]) -> None:
    groups = param_groups(module)
    if len(groups) > 1:
        raise UnsupportedError(
            "an FSDP module has parameters on several meshes, so torch takes no reduce-scatter for it; shard its parts "
            "by modules of their own, or leave `compress` out."
        )
    for group in groups:
        check_has(group, _OF_GROUP, WHAT)
        for param in group.fsdp_params:
            check_has(param, _OF_PARAM, WHAT)
            if param.mesh_info.replicate_mesh_dim is not None:
                raise UnsupportedError(
                    "on a two-dimensional mesh FSDP2 sums between nodes by itself, uncompressed. Call fully_shard with "
                    "the one-dimensional mesh of the ranks of this node, and attach(..., collective=tg.collectives."
                    "TorchCollective()) with all ranks: `compress` then runs between nodes."
                )
            if param.fsdp_placement.dim != 0:
                name = names.get(id(param.sharded_param), "a frozen parameter")
                raise UnsupportedError(
                    f"{name!r} is sharded along dimension {param.fsdp_placement.dim}; `compress` under FSDP2 needs "
                    "dimension 0."
                )
