"""FSDP2 within each node, and between nodes what is handed over: each rank's shards, summed within its node.

`fully_shard` gets the one-dimensional mesh of the ranks of one node, `attach` the collective of all ranks. Ranks that
keep the same shards on different nodes then sum them, in torch's all-reduce hook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tightgrad.adapters.fsdp2 import local_part
from tightgrad.adapters.fsdp2_encoded import BetweenNodes, FSDP2EncodedAdapter, Unit
from tightgrad.adapters.parts.fingerprint import fingerprint
from tightgrad.adapters.parts.names import trainable_parameters
from tightgrad.core.errors import RankMismatchError, UnsupportedError
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam


class FSDP2NodesAdapter(FSDP2EncodedAdapter):
    """A module under `fully_shard` on the mesh of a part of the ranks, that hands over its shards for their sum.

    Attributes:
        between_nodes: the ranks that keep the same shards as this one, one on each node.
        remembered_shapes: what is remembered of a parameter is about this rank's shard of it, in one dimension.

    Raises:
        UnsupportedError: the nodes are not equally large, or parameters are not sharded along their first dimension.
        RankMismatchError: the nodes do not hold copies of one model.
    """

    between_nodes: Collective

    def __init__(self, model: nn.Module, collective: Collective | None = None) -> None:
        super().__init__(model, collective)
        self._shard_numels = {name: local_part(p).numel() for name, p in self.parameters.items()}
        self.remembered_shapes = {name: (numel,) for name, numel in self._shard_numels.items()}

    def connect(self) -> None:
        """Make the groups between nodes."""
        super().connect()
        self.between_nodes = self.collective.split(self._groups())
        self._check_copies()

    def _check_copies(self) -> None:
        """Compare the weights of the nodes: gradients of different models must never be added."""
        marks = torch.stack([fingerprint(parameter) for parameter in self.parameters.values()])
        table = self.between_nodes.all_gather(marks.to(self.between_nodes.control_device))
        apart = (table != table[0]).any(dim=0).to(torch.int32)
        found = self.collective.all_reduce_(apart.to(self.collective.control_device), "max").tolist()
        names = [name for name, differs in zip(self.parameters, found, strict=True) if differs]
        if names:
            raise RankMismatchError(
                f"collective= has {self.collective.world_size} ranks, of which each "
                f"{self.collective.world_size // self.between_nodes.world_size} hold a copy of the model, but "
                f"{len(names)} of its {len(found)} parameters differ from copy to copy, {names[0]!r} among them. If "
                "these are different models, pass the ranks of each: collective=tg.collectives.TorchCollective("
                "mesh.get_group()). If they are copies of one, load or broadcast its weights before attach()."
            )

    def _check_mesh(self) -> None:
        for name, parameter in self.parameters.items():
            assert isinstance(parameter, DTensor)
            if parameter.device_mesh.ndim != 1 or self.collective.world_size % parameter.device_mesh.size():
                raise UnsupportedError(
                    f"{name!r} lies on a mesh of {tuple(parameter.device_mesh.shape)} of {self.collective.world_size} "
                    "ranks; compression between nodes needs meshes of one dimension and nodes of equal size."
                )

    def _groups(self) -> list[list[int]]:
        """For each shard, the ranks that keep it, in the order of their nodes."""
        parameter = next(iter(self.parameters.values()))
        assert isinstance(parameter, DTensor)
        mesh = parameter.device_mesh
        place = torch.tensor([int(mesh.mesh.min()), mesh.get_local_rank()], dtype=torch.int64)
        table = self.collective.all_gather(place.to(self.collective.control_device)).tolist()
        ranks = sorted(range(len(table)), key=lambda rank: tuple(table[rank]))
        groups = [[rank for rank in ranks if table[rank][1] == shard] for shard in range(mesh.size())]
        if len({len(group) for group in groups}) > 1:
            raise UnsupportedError(
                f"the nodes are not equally large: shards are kept by {[len(group) for group in groups]} ranks."
            )
        return groups

    def _install(self, module: FSDPModule, params: list[tuple[str, FSDPParam]]) -> None:
        module.set_all_reduce_hook(BetweenNodes(lambda output: self.hand_over(self._unit(output, params))))

    def _unit(self, output: Tensor, params: list[tuple[str, FSDPParam]]) -> Unit:
        """Name the shards of one FSDP module."""
        shards: Grads = {}
        start = 0
        for name, param in params:
            if hasattr(param, "_unsharded_param"):
                shards[name] = output[start : start + self._shard_numels[name]]
                start += param.padded_sharded_param_size.numel()
        if start != output.numel():
            raise UnsupportedError(
                f"FSDP2 hands over {output.numel()} elements where {start} were expected for {', '.join(shards)}; this "
                "version of torch lays them out otherwise."
            )
        rows = {name: [shard] for name, shard in shards.items()}
        shapes = {name: shard.shape for name, shard in shards.items()}
        return Unit(rows, shapes, self.used(rows), shards, output)

    def sent_nbytes(self) -> int:
        """The reduce-scatter within the node; what goes between nodes is counted where it is sent."""
        return self.wrapper_nbytes(num_replicas=1)


def smaller_mesh(model: nn.Module, world_size: int) -> tuple[str, DTensor] | None:
    """Return the first parameter of a module under `fully_shard` and its name, if its mesh has one dimension and fewer
    ranks than `world_size`.
    """
    for name, parameter in trainable_parameters(model).items():
        assert isinstance(parameter, DTensor)
        mesh = parameter.device_mesh
        return (name, parameter) if mesh.ndim == 1 and mesh.size() < world_size else None
    return None
