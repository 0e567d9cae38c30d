"""FSDP2 units whose gradients are handed over as soon as the backward of each is done, to be summed otherwise.

`UnitHandOver` takes the place of FSDP2's reduce-scatter and hands over whole gradients. torch gives it a flat buffer.
What lies where follows from the shapes: row r of it holds, one parameter after the other, the rows of each gradient
that rank r will keep, padded to equal length. So gradients are known by name, and what is remembered has the
parameters' own shapes, on any number of ranks and under any wrapper.

`NodeHandOver` leaves the reduce-scatter to FSDP2, within each node, and hands over each rank's shards for their sum
between nodes, in torch's all-reduce hook. `fully_shard` gets the one-dimensional mesh of the ranks of one node,
`attach` the collective of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tightgrad.adapters.parts.fingerprint import fingerprint
from tightgrad.adapters.parts.fsdp2_grads import unsharded_param
from tightgrad.adapters.parts.fsdp2_torch import fsdp_modules, param_groups, set_reduces_unused, trained_units
from tightgrad.adapters.parts.placement import check_whole_mesh, like_sharded
from tightgrad.adapters.parts.torch_private import check_has, unknown_torch
from tightgrad.adapters.plain import trainable_parameters
from tightgrad.core.collective import gathered
from tightgrad.core.errors import RankMismatchError, UnsupportedError
from tightgrad.core.placement import is_dtensor, local_part
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

    from tightgrad.adapters.parts.fsdp2_torch import NamedParams

WHAT = "compress under fully_shard (FSDP2)"

# Of each group and parameter, private in torch 2.9 to 2.14.
_OF_GROUP = ("_reduce_scatter_comm", "_all_reduce_hook")
_OF_PARAM = ("_orig_size", "fsdp_placement")


@dataclass(frozen=True, slots=True)
class Unit:
    """Holds the gradients of one FSDP module.

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


class UnitHandOver:
    """Hands over whole gradients before they are cut into shards, summed and not averaged, once a window.

    Args:
        model: the root module, under `fully_shard` on a one-dimensional mesh of all ranks.
        collective: the data-parallel ranks.

    Attributes:
        used: names of the parameters that this rank used in this window, which the adapter notes.
        remembered_shapes: of what is remembered of each parameter; None where they are the parameters' own.
        leaves_reduce_scatter: whether FSDP2 itself sums within its mesh.
        background: the ranks, as a process group of its own.

    Raises:
        UnsupportedError: the mesh has two dimensions, or parameters are not sharded along their first dimension.
    """

    leaves_reduce_scatter = False
    remembered_shapes: Mapping[str, tuple[int, ...]] | None = None
    background: Collective

    def __init__(self, model: nn.Module, collective: Collective) -> None:
        self.parameters = trainable_parameters(model)
        self.used: set[str] = set()
        self._collective = collective
        self._check_mesh()
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        for module in fsdp_modules(model):
            _check_unit(module, names)
        self._units = trained_units(model, names)

    def _check_mesh(self) -> None:
        check_whole_mesh(self.parameters, self._collective)

    def connect(self) -> None:
        """Make the group for what is handed over. Collective: every rank must call it."""
        self.background = self._collective.split([range(self._collective.world_size)])

    def serve(self, receive: UnitReceiver) -> None:
        """Hand over to `receive` from now on."""
        for module, _, params in self._units:
            self._install(module, params, receive)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def _install(self, module: FSDPModule, params: NamedParams, receive: UnitReceiver) -> None:
        module.set_custom_reduce_scatter(_reduce_scatter()(params, self.used, receive))

    def shard_numels(self, name: str) -> list[int]:
        """Return how many elements of a parameter each rank keeps."""
        return shard_numels(self.parameters[name].shape, self._collective.world_size)

    def as_gradient(self, name: str, shard: Tensor) -> Tensor:
        """Return this rank's shard, of one dimension, as the gradient of a parameter."""
        parameter = self.parameters[name]
        return like_sharded(parameter, shard.view(local_part(parameter).shape).to(parameter.dtype))


class NodeHandOver(UnitHandOver):
    """Hands over shards that FSDP2 has summed within a node, for their sum between nodes.

    Args:
        model: the root module, under `fully_shard` on the mesh of a part of the ranks.
        collective: all data-parallel ranks.

    Attributes:
        between_nodes: the ranks that keep the same shards as this one, one on each node.
        remembered_shapes: what is remembered of a parameter is about this rank's shard of it, in one dimension.

    Raises:
        UnsupportedError: the nodes are not equally large, or parameters are not sharded along their first dimension.
        RankMismatchError: when connected, the nodes do not hold copies of one model.
    """

    leaves_reduce_scatter = True
    between_nodes: Collective

    def __init__(self, model: nn.Module, collective: Collective) -> None:
        super().__init__(model, collective)
        self._numels = {name: local_part(parameter).numel() for name, parameter in self.parameters.items()}
        self.remembered_shapes = {name: (numel,) for name, numel in self._numels.items()}

    def connect(self) -> None:
        """Make the groups between nodes as well. Collective: every rank must call it."""
        super().connect()
        self.between_nodes = self._collective.split(self._groups())
        self._check_copies()

    def _check_copies(self) -> None:
        """Compare the weights of the nodes: gradients of different models must never be added."""
        ranks, nodes = self._collective, self.between_nodes
        marks = torch.stack([fingerprint(parameter) for parameter in self.parameters.values()])
        table = nodes.all_gather(marks.to(nodes.control_device))
        apart = (table != table[0]).any(dim=0).to(torch.int32)
        found = ranks.all_reduce_(apart.to(ranks.control_device), "max").tolist()
        names = [name for name, differs in zip(self.parameters, found, strict=True) if differs]
        if names:
            raise RankMismatchError(
                f"collective= has {ranks.world_size} ranks, of which each {ranks.world_size // nodes.world_size} hold "
                f"a copy of the model, but {len(names)} of its {len(found)} parameters differ from copy to copy, "
                f"{names[0]!r} among them. If these are different models, pass the ranks of each: "
                "collective=tg.collectives.TorchCollective(mesh.get_group()). If they are copies of one, load or "
                "broadcast its weights before attach()."
            )

    def _check_mesh(self) -> None:
        for name, parameter in self.parameters.items():
            assert is_dtensor(parameter)
            if parameter.device_mesh.ndim != 1 or self._collective.world_size % parameter.device_mesh.size():
                raise UnsupportedError(
                    f"{name!r} lies on a mesh of {tuple(parameter.device_mesh.shape)} of {self._collective.world_size} "
                    "ranks; compression between nodes needs meshes of one dimension and nodes of equal size."
                )

    def _groups(self) -> list[list[int]]:
        """For each shard, the ranks that keep it, in the order of their nodes."""
        parameter = next(iter(self.parameters.values()))
        assert is_dtensor(parameter)
        mesh = parameter.device_mesh
        table = gathered([int(mesh.mesh.min()), mesh.get_local_rank()], self._collective)
        ranks = sorted(range(len(table)), key=lambda rank: tuple(table[rank]))
        groups = [[rank for rank in ranks if table[rank][1] == shard] for shard in range(mesh.size())]
        if len({len(group) for group in groups}) > 1:
            raise UnsupportedError(
                f"the nodes are not equally large: shards are kept by {[len(group) for group in groups]} ranks."
            )
        return groups

    def _install(self, module: FSDPModule, params: NamedParams, receive: UnitReceiver) -> None:
        module.set_all_reduce_hook(_AllReduceHook(lambda output: receive(self._unit(output, params))))

    def _unit(self, output: Tensor, params: NamedParams) -> Unit:
        """Name the shards of one FSDP module."""
        shards: Grads = {}
        start = 0
        for name, param in params:
            if unsharded_param(param) is not None:
                shards[name] = output[start : start + self._numels[name]]
                start += param.padded_sharded_param_size.numel()
        _check_layout(output.numel(), start, shards)
        rows = {name: [shard] for name, shard in shards.items()}
        shapes = {name: shard.shape for name, shard in shards.items()}
        return Unit(rows, shapes, frozenset(self.used & rows.keys()), shards, output)


class _ReduceScatter:
    """Takes the place of one FSDP module's reduce-scatter; `_reduce_scatter` gives the class that torch takes."""

    def __init__(self, params: NamedParams, used: Set[str], receive: UnitReceiver) -> None:
        self._params, self._used, self._receive = params, used, receive

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
            if unsharded_param(param) is None:
                continue  # no forward has used it yet
            shapes[name] = param._orig_size
            numels = shard_numels(param._orig_size, world_size)
            rows[name] = [table[rank, start : start + numel] for rank, numel in enumerate(numels)]
            shards[name] = output_tensor[start : start + numels[group.rank()]]
            start += max(numels)
        _check_layout(table.shape[1], start, rows)
        self._receive(Unit(rows, shapes, frozenset(self._used & rows.keys()), shards, output_tensor))


@cache
def _reduce_scatter() -> Any:
    """The class whose objects torch takes for a reduce-scatter: torch's own is imported only now."""
    try:
        from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter  # private in torch 2.9 to 2.14
    except ImportError as error:
        raise unknown_torch(str(error), WHAT) from error
    return type("ReduceScatterHandedOver", (_ReduceScatter, ReduceScatter), {})


class _AllReduceHook:
    """The all-reduce hook of one FSDP module, known by its class."""

    def __init__(self, take: Callable[[Tensor], None]) -> None:
        self._take = take

    def __call__(self, reduce_output: Tensor) -> None:
        """Called by FSDP2 after the reduce-scatter."""
        self._take(reduce_output)


def shard_numels(size: torch.Size, world_size: int) -> list[int]:
    """Return the elements that each rank keeps of a tensor that is cut along its first dimension, as `torch.chunk` does
    it.
    """
    rows = -(-size[0] // world_size)
    row_numel = size.numel() // size[0] if size[0] else 0
    return [row_numel * (min(size[0], rows * (rank + 1)) - min(size[0], rows * rank)) for rank in range(world_size)]


def sum_by_themselves(modules: Iterable[FSDPModule]) -> None:
    """Let FSDP2 average again, whatever has been installed in its modules to hand units over."""
    for module in modules:
        groups = param_groups(module)
        scatters = any(isinstance(getattr(group, "_reduce_scatter_comm", None), _ReduceScatter) for group in groups)
        hooks = any(isinstance(getattr(group, "_all_reduce_hook", None), _AllReduceHook) for group in groups)
        if scatters:
            from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultReduceScatter  # torch 2.9 to 2.14

            module.set_custom_reduce_scatter(DefaultReduceScatter())
        if hooks:
            module.set_all_reduce_hook(None)  # type: ignore[arg-type]
        if scatters or hooks:
            module.set_gradient_divide_factor(None)  # type: ignore[arg-type]
            module.set_force_sum_reduction_for_comms(False)
            set_reduces_unused([module], False)


def _check_layout(given: int, expected: int, names: Iterable[str]) -> None:
    if given != expected:
        raise UnsupportedError(
            f"FSDP2 hands over {given} elements where {expected} were expected for {', '.join(names)}; this version of "
            "torch lays them out otherwise."
        )


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
