"""Tensors in a checkpoint of torch.distributed.checkpoint (DCP), by key."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor

from tightgrad.core.errors import CheckpointError
from tightgrad.core.placement import is_dtensor
from tightgrad.core.protocols import Collective

if TYPE_CHECKING:
    from torch.distributed.checkpoint.storage import StorageReader

Source = Union[str, Path, "StorageReader"]
Template = Callable[[str, torch.Size, torch.dtype], Tensor]

WRITTEN = ".metadata"
"""What DCP writes last: a folder that has it is whole."""


def empty_like_saved(
    shape: torch.Size, dtype: torch.dtype, like: Tensor | None, placements: tuple[Any, ...] | None
) -> Tensor:
    """Return a tensor to read a saved one into.

    Args:
        shape: of the whole tensor.
        dtype: that was saved.
        like: the living tensor whose device or mesh it is read to; None reads it to the CPU.
        placements: how it lay on its mesh when it was saved; None if it was no DTensor.
    """
    if like is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    if not is_dtensor(like):
        return torch.empty(shape, dtype=dtype, device=like.device)
    if like.shape == shape:
        return torch.empty_like(like, dtype=dtype, requires_grad=False)
    mesh: Any = like.device_mesh
    if placements is None or len(placements) != mesh.ndim:
        return torch.empty(shape, dtype=dtype, device="cpu")
    from torch.distributed.tensor import empty

    sharded: Tensor = empty(shape, dtype=dtype, device_mesh=mesh, placements=placements)
    return sharded


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, collective: Collective) -> None:
    """Write tensors, of DTensors each rank's part, as one checkpoint. Collective: every rank must call it with the same
    plain tensors.

    Args:
        tensors: by key.
        folder: shared by all ranks; holds no other checkpoint of torch's.
        collective: the ranks. If it has no process group, rank 0 writes alone.

    Raises:
        CheckpointError: on all ranks, where they write together; else on rank 0.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # takes a second
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    group = getattr(collective, "group", None) if collective.world_size > 1 else None
    if group is None and collective.rank > 0:
        return
    writer = FileSystemWriter(folder)  # flushes its files to the disk, and writes `WRITTEN` last
    try:
        let_torch_be_quiet()
        save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise CheckpointError(f"torch cannot write its part of the checkpoint: {_reason(error)}.") from error


def whole_tensor(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return a place on the CPU for a saved tensor."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def read_tensors(
    source: Source, wanted: Callable[[Iterable[str]], Iterable[str]], template: Template = whole_tensor
) -> dict[str, Tensor]:
    """Read tensors on this rank alone.

    Args:
        source: a folder, or torch's reader for another kind of storage.
        wanted: returns, of all keys, those to read.
        template: returns where a tensor is read to, given its key, shape and dtype.

    Raises:
        CheckpointError: there is no such checkpoint, or it cannot be read.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # takes a second
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        reader = FileSystemReader(source) if isinstance(source, str | Path) else source
        found = reader.read_metadata().state_dict_metadata
        tensors = {}
        for key in wanted(found):
            about = found[key]
            if not isinstance(about, TensorStorageMetadata):
                raise CheckpointError(f"{key} in {source} is not a tensor; was it written by tightgrad?")
            tensors[key] = template(key, about.size, about.properties.dtype)
        let_torch_be_quiet()
        load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, OSError, ValueError, LookupError, RuntimeError, EOFError, AssertionError) as error:
        raise CheckpointError(f"{source} cannot be read as a torch checkpoint: {_reason(error)}.") from None
    return tensors


def _reason(error: BaseException) -> str:
    """What went wrong, without the tracebacks of all ranks that torch puts into its message."""
    failures = getattr(error, "failures", None) or {}
    return "; ".join(f"rank {rank}: {type(cause).__name__}: {cause}" for rank, (cause, _) in failures.items()) or str(
        error
    )


def let_torch_be_quiet() -> None:
    """Let torch not warn that one process does it alone, from here on: filters belong to all threads of a process, so
    one that goes back to those before would do so under another thread's feet.
    """
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
