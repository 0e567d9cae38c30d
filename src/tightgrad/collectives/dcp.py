"""Tensors out of a checkpoint of torch.distributed.checkpoint (DCP), by key."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from tightgrad.core.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.storage import StorageReader

Source = Union[str, Path, "StorageReader"]


def read_tensors(source: Source, wanted: Callable[[Iterable[str]], Iterable[str]]) -> dict[str, Tensor]:
    """Read tensors on this rank alone.

    Args:
        source: a folder, or torch's reader for another kind of storage.
        wanted: returns, of all keys, those to read.

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
            tensors[key] = torch.empty(about.size, dtype=about.properties.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that only this process reads
            load(tensors, storage_reader=reader, no_dist=True)
    except (CheckpointException, OSError, ValueError, LookupError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{source} cannot be read as a torch checkpoint: {error}.") from None
    return tensors
