"""torch.distributed (gloo or NCCL), with every byte counted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from tightgrad.collectives import in_pieces
from tightgrad.collectives.backends import backend_name as backend_name
from tightgrad.collectives.backends import control_device, derived_group
from tightgrad.collectives.single import SingleCollective
from tightgrad.collectives.traffic import all_gather_nbytes, all_reduce_nbytes, all_to_all_nbytes, broadcast_nbytes
from tightgrad.core.errors import CommunicationError, UsageError
from tightgrad.core.protocols import ReduceOp, Traffic

_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


class TorchCollective:
    """Runs on a process group. Its operations raise `CommunicationError` when the group's time-out passes or a rank has
    died.

    Args:
        group: a torch process group; None is the default group.

    Raises:
        UsageError: torch.distributed is not initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise UsageError(
                "torch.distributed is not initialised; call torch.distributed.init_process_group() first "
                "(under torchrun), or train the plain module on one process."
            )
        self.group = group if group is not None else dist.distributed_c10d._get_default_group()
        self.rank = dist.get_rank(self.group)
        self.world_size = dist.get_world_size(self.group)
        self.control_device = control_device(self.group)
        self.traffic = Traffic()
        self._parts: dict[tuple[tuple[int, ...], ...], TorchCollective] = {}

    def all_reduce_(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """Reduce over ranks in place; return the same tensor."""
        with self._talking("all_reduce"):
            dist.all_reduce(tensor, _OPS[op], group=self.group)
        self.traffic.add("all_reduce", all_reduce_nbytes(_nbytes(tensor), self.world_size))
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack the ranks' tensors: shape (world_size, *tensor.shape)."""
        flat = tensor.contiguous().view(-1)
        gathered = torch.empty(self.world_size, flat.numel(), dtype=flat.dtype, device=flat.device)
        if flat.numel():
            with self._talking("all_gather"):
                if self.world_size == 2 and in_pieces.are_large(flat, flat):
                    gathered[self.rank] = flat
                    in_pieces.exchange(flat, gathered[1 - self.rank], self.group)
                else:
                    _all_gather_flat(gathered.view(-1), flat, self.group)
        self.traffic.add("all_gather", all_gather_nbytes(_nbytes(flat), self.world_size))
        return gathered.view(self.world_size, *tensor.shape)

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start an all-gather; return a function that waits for it (under NCCL the current stream waits). Not cut into
        pieces.

        The group's own method is called: `torch.distributed`'s Python around it takes as long as the collective.
        """
        own = tensor.contiguous()
        gathered = own.new_empty((self.world_size, *own.shape))
        with self._talking("all_gather"):
            work = self.group.allgather([list(gathered.unbind())], [own]) if own.numel() else None
        self.traffic.add("all_gather", all_gather_nbytes(_nbytes(own), self.world_size))

        def receive() -> Tensor:
            if work is not None:
                with self._talking("all_gather"):
                    work.wait()
            return gathered

        return receive

    def all_to_all(self, chunks: Sequence[Tensor], receive_numels: Sequence[int]) -> list[Tensor]:
        """Send 1-D `chunks[r]` to rank r; return what each rank sent here, of the given sizes."""
        like = chunks[self.rank]
        flat = torch.empty(sum(receive_numels), dtype=like.dtype, device=like.device)
        received = list(flat.split(list(receive_numels)))
        with self._talking("all_to_all"):
            other = 1 - self.rank
            if self.world_size == 2 and in_pieces.are_large(chunks[other], received[other]):
                received[self.rank].copy_(like)
                in_pieces.exchange(chunks[other].contiguous(), received[other], self.group)
            else:
                send_numels = [chunk.numel() for chunk in chunks]
                dist.all_to_all_single(flat, torch.cat(list(chunks)), list(receive_numels), send_numels, self.group)
        nbytes = all_to_all_nbytes([_nbytes(chunk) for chunk in chunks], self.rank)
        self.traffic.add("all_to_all", nbytes)
        return received

    def split(self, groups: Sequence[Sequence[int]]) -> "TorchCollective":
        """Return the group, of those given, that this rank is in."""
        key = tuple(tuple(group) for group in groups)
        if key not in self._parts:
            mine = next(group for group in key if self.rank in group)
            members = [dist.get_global_rank(self.group, rank) for rank in mine]
            # Only the ranks of a group make it, so that this also works when this collective is itself a part.
            part = type(self)(derived_group(self.group, members))
            part.traffic = self.traffic
            self._parts[key] = part
        return self._parts[key]

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrite `tensor` with rank `source`'s; return it."""
        with self._talking("broadcast"):
            dist.broadcast(tensor, group=self.group, group_src=source)
        nbytes = broadcast_nbytes(_nbytes(tensor), self.world_size, is_source=self.rank == source)
        self.traffic.add("broadcast", nbytes)
        return tensor

    @contextmanager
    def _talking(self, operation: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise CommunicationError(
                f"{operation} failed on rank {self.rank} of {self.world_size}: {reason} A rank has died, waits "
                "elsewhere, or the network is gone; this step was not applied here. See the other ranks' errors, and "
                "start again from the last checkpoint."
            ) from error


def all_processes() -> TorchCollective | SingleCollective:
    """Return the default process group, or one process where torch.distributed is not initialised."""
    return TorchCollective() if dist.is_available() and dist.is_initialized() else SingleCollective()


def _all_gather_flat(gathered: Tensor, flat: Tensor, group: dist.ProcessGroup | None) -> None:
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
    gather(gathered, flat, group=group)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
