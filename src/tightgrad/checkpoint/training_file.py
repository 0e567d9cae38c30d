"""One rank's file beside the pipeline's own: everything of a training loop that is no tensor of all ranks.

It is written by torch.save behind a digest of all its bytes, so that a changed bit is found before anything is taken
up. Reading it, as reading any checkpoint of torch.distributed.checkpoint, runs what a forged file says.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tightgrad.core.errors import CheckpointError

VERSION = 1
_DIGEST_NBYTES = 16


def training_file_name(rank: int, world_size: int) -> str:
    """Return the name of one rank's file."""
    return f"training-{rank:05d}-of-{world_size:05d}.pt"


def to_file(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file."""
    buffer = io.BytesIO()
    torch.save({**content, "version": VERSION}, buffer)
    written = buffer.getvalue()
    return _digest(written) + written


def from_file(path: Path, save_id: str) -> dict[str, Any]:
    """Read what `to_file` gave; tensors are on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, of another version or of another save.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is not there: {path.parent} holds what pipe.save() writes, the pipeline alone, or was not copied "
            "whole. Load what pipe.save() has written with pipe.load()."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    written = content[_DIGEST_NBYTES:]
    if content[:_DIGEST_NBYTES] != _digest(written):
        raise CheckpointError(f"{path} is damaged: its contents do not match their digest.")
    read: dict[str, Any] = torch.load(io.BytesIO(written), map_location="cpu", weights_only=False)
    if read["version"] != VERSION:
        raise CheckpointError(f"{path} is of version {read['version']!r}; this is version {VERSION}.")
    if read["save"] != save_id:
        raise CheckpointError(
            f"{path} is of the save {read['save']}, and the pipeline's file beside it of {save_id or 'none'}; bring "
            "the files of one save back."
        )
    return read


def _digest(written: bytes) -> bytes:
    return hashlib.blake2b(written, digest_size=_DIGEST_NBYTES).digest()
