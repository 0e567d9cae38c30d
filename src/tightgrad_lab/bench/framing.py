"""Bytes that gloo puts around tensors, and a collective that counts them.

Each message has frames of 48 bytes: its sender sends two (one announces it, one goes before the tensor's bytes), its
receiver one (it is ready). Measured with two, three and four ranks in network namespaces (torch 2.13) and tensors of 4
bytes to 280 kB: these counts, to the frame, as a mean over the ranks. Beyond that, what TCP sends again hides them.
"""

from collections.abc import Callable, Sequence

import torch.distributed as dist
from torch import Tensor

from tightgrad.collectives import TorchCollective, in_pieces
from tightgrad.core.protocols import ReduceOp, Traffic

FRAME_NBYTES = 48
_OF_SENDER, _OF_RECEIVER = 2, 1


def of_messages(sent: int, received: int) -> int:
    """Return the bytes of frames that a rank sends for messages that it sends and receives."""
    return FRAME_NBYTES * (_OF_SENDER * sent + _OF_RECEIVER * received)


def of_all_reduce(numel: int, world_size: int) -> int:
    """Return the frames' bytes of a ring over up to two segments a rank, which goes around twice; rounded up."""
    if not numel:
        return 0
    segments = -(-numel // -(-numel // (2 * world_size)))
    return -(-of_messages(1, 1) * 2 * (world_size - 1) * segments // world_size)


def of_all_gather(world_size: int) -> int:
    """Return the frames' bytes of a ring that passes each rank's tensor in two halves."""
    messages = 2 * (world_size - 1)
    return of_messages(messages, messages)


def of_all_to_all(world_size: int) -> int:
    """Return the frames' bytes of one message to each other rank."""
    return of_messages(world_size - 1, world_size - 1)


def of_broadcast(world_size: int, *, is_source: bool) -> int:
    """Return the frames' bytes of one message to each other rank, counted as if the source sent them all."""
    return of_messages(world_size - 1, 0) if is_source else of_messages(0, 1)


class FramedCollective(TorchCollective):
    """Counts gloo's frames beside the bytes of tensors, on the CPU.

    Attributes:
        frames: what has left this rank so far, by collective; shared with the parts of this collective.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        super().__init__(group)
        self.frames = Traffic()

    def all_reduce_(self, tensor: Tensor, op: ReduceOp = "sum") -> Tensor:
        """Reduce over ranks in place; return the same tensor."""
        self.frames.add("all_reduce", of_all_reduce(tensor.numel(), self.world_size))
        return super().all_reduce_(tensor, op)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Stack the ranks' tensors: shape (world_size, *tensor.shape)."""
        if self.world_size == 2 and in_pieces.are_large(tensor, tensor):
            self.frames.add("all_gather", of_messages(*[in_pieces.num_pieces(tensor.reshape(-1))] * 2))
        elif tensor.numel():
            self.frames.add("all_gather", of_all_gather(self.world_size))
        return super().all_gather(tensor)

    def start_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin an all-gather, and return what waits for it."""
        self.frames.add("all_gather", of_all_gather(self.world_size) if tensor.numel() else 0)
        return super().start_all_gather(tensor)

    def all_to_all(self, chunks: Sequence[Tensor], receive_numels: Sequence[int]) -> list[Tensor]:
        """Send 1-D `chunks[r]` to rank r; return what each rank sent here, of the given sizes."""
        received = super().all_to_all(chunks, receive_numels)
        around = of_all_to_all(self.world_size)
        other = 1 - self.rank
        if self.world_size == 2 and in_pieces.are_large(chunks[other], received[other]):
            around = of_messages(in_pieces.num_pieces(chunks[other]), in_pieces.num_pieces(received[other]))
        self.frames.add("all_to_all", around)
        return received

    def broadcast_(self, tensor: Tensor, source: int = 0) -> Tensor:
        """Overwrite `tensor` with rank `source`'s; return it."""
        self.frames.add("broadcast", of_broadcast(self.world_size, is_source=self.rank == source))
        return super().broadcast_(tensor, source)

    def split(self, groups: Sequence[Sequence[int]]) -> TorchCollective:
        """Return the group that this rank is in, whose frames are counted here."""
        part = super().split(groups)
        assert isinstance(part, FramedCollective)
        part.frames = self.frames
        return part
