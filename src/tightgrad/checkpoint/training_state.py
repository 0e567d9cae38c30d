"""The state of a whole training loop in files: tensors that all ranks share once, and what differs by rank by rank.

Which is which is found out and not assumed: ranks compare checksums. So running statistics that differ by rank, experts
that only one rank has and the place in a rank's part of the data are saved as what they are.

    training-00000-of-00002.pt      rank 0: numbers, names, its own tensors, generators, checksums
    .metadata, __0_0.distcp, ...    torch.distributed.checkpoint: the tensors of all ranks, of DTensors the shards

A rank's file is written by torch.save behind a digest of all its bytes, so that a changed bit is found before anything
is taken up. Reading it, as reading any checkpoint of torch.distributed.checkpoint, runs what a forged file says.
"""

import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tightgrad.checkpoint import tree
from tightgrad.checkpoint.saved_parts import Part, is_kept_apart
from tightgrad.clip.dtensor import stored
from tightgrad.collectives.dcp import empty_like_saved, read_tensors, write_tensors
from tightgrad.collectives.gather_with_grad import gather_rows
from tightgrad.core.errors import CheckpointError, StateMismatchError
from tightgrad.core.placement import is_dtensor
from tightgrad.core.protocols import Collective

_BY_PLACE = "loader"  # the part whose state counts the batches of one rank's share of the data
MODEL = "model"
VERSION = 1
_DIGEST_NBYTES = 16


@dataclass(frozen=True)
class Taken:
    """Holds what one rank is to write.

    Attributes:
        rest: of each part, without its tensors.
        tensors: by path, which begins with the part's name.
        checksums: of this rank's part of each tensor.
    """

    rest: dict[str, Any]
    tensors: dict[tree.Path, Tensor]
    checksums: dict[tree.Path, tuple[int, tuple[int, ...]]]

    @classmethod
    def of(cls, parts: Mapping[str, Part]) -> "Taken":
        """Take the state of all parts. Tensors are not copied."""
        rest, tensors = tree.tensors_apart({name: part.take() for name, part in parts.items()}, is_kept_apart)
        return cls(rest, tensors, {path: checksum(tensor) for path, tensor in tensors.items()})

    def own(self, collective: Collective) -> set[tree.Path]:
        """Return which tensors are not the same on all ranks. Collective: every rank must call it."""
        if collective.world_size == 1:
            return set()
        marks = {
            path: _mark(path, tensor, self.checksums[path])
            for path, tensor in self.tensors.items()
            if not is_dtensor(tensor)
        }
        mine = torch.tensor(list(marks.values()), dtype=torch.int64, device="cpu").to(collective.control_device)
        rows, counts = gather_rows(mine, collective)
        everywhere = set.intersection(*(set(row.tolist()) for row in rows.cpu().split(counts)))
        return {path for path, mark in marks.items() if mark not in everywhere}

    def file(self, own: Iterable[tree.Path], save_id: str, about: Mapping[str, Any]) -> bytes:
        """Return this rank's file."""
        return to_file(
            {
                **about,
                "save": save_id,
                "rest": self.rest,
                "own": {path: self.tensors[path].detach() for path in own},
                "checksums": self.checksums,
                "placements": {path: t.placements for path, t in self.tensors.items() if is_dtensor(t)},
            }
        )

    def write(self, own: set[tree.Path], target: Path, collective: Collective) -> None:
        """Write the tensors of all ranks. Collective: every rank must call it."""
        shared = {_key(path): tensor.detach() for path, tensor in self.tensors.items() if path not in own}
        if len(shared) + len(own) < len(self.tensors):
            raise CheckpointError("two tensors have one name; keys of a state must differ as text as well.")
        write_tensors(shared, target, collective)


@dataclass(frozen=True)
class Read:
    """Holds what one rank has read, and has compared with the parts that are to take it up.

    Attributes:
        states: by the name of their part.
        resumed: what the saved rank of this number gave for it; None if there were fewer.
        plan: as JSON values.
    """

    states: dict[str, Any]
    resumed: dict[str, Any] | None
    plan: dict[str, Any]


def read_training(
    target: Path, saved_size: int, save_id: str, parts: Mapping[str, Part], rank: int, world_size: int
) -> Read:
    """Read a checkpoint on this rank alone, and change nothing.

    Raises:
        CheckpointError: files are missing, damaged or of different saves.
        StateMismatchError: it does not fit the parts, or cannot be taken up by another number of ranks.
    """
    is_same_size = saved_size == world_size

    @cache
    def file_of(other: int) -> dict[str, Any]:
        return from_file(target / training_file_name(other, saved_size), save_id)

    files = [file_of(other) for other in ([rank] if is_same_size else range(saved_size))]
    own = files[0]["own"] if is_same_size else _of_all(files, parts)
    file = files[0]
    _check_same_parts(file["rest"], parts)
    placements, likes = file["placements"], {name: part.likes() for name, part in parts.items()}
    paths = {_key(path): path for path in file["checksums"] if path not in own and path[0] in parts}

    def template(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        path = paths[key]
        return empty_like_saved(shape, dtype, likes[str(path[0])](path[1:]), placements.get(path))

    shared = read_tensors(target, lambda keys: [*paths], template)
    tensors = {**{paths[key]: tensor for key, tensor in shared.items()}, **own}

    def of_others(path: tree.Path) -> Iterator[object]:
        return (file_of(other)["checksums"][path] for other in range(saved_size))

    for path, tensor in tensors.items():
        _check_undamaged(path, tensor, path in placements, file["checksums"][path], of_others, target)
    states = tree.together({name: file["rest"][name] for name in parts if name in file["rest"]}, tensors)
    for name, state in states.items():
        parts[name].check(state)
    mine = files[0] if is_same_size else files[rank] if rank < saved_size else None
    return Read(states, mine and mine["resumed"], file["plan"])


def _of_all(files: list[dict[str, Any]], parts: Mapping[str, Part]) -> dict[tree.Path, Tensor]:
    """What was saved by rank, for another number of ranks: the running statistics of rank 0, and nothing else."""
    first = files[0]
    for name in parts:
        paths = {path for file in files for path in file["own"] if path[0] == name}
        differ = any(repr(file["rest"].get(name)) != repr(first["rest"].get(name)) for file in files)
        if name == MODEL:
            paths -= {path for path in paths if path in first["own"] and path[1:] in first["buffers"]}
        if paths or differ or (name == _BY_PLACE and name in first["rest"]):
            which = f" ({', '.join(sorted({_key(path[1:]) for path in paths})[:3])})" if paths else ""
            cure = (
                " leave loader out of load(), and begin the loader at the batch that it returns"
                if name == _BY_PLACE
                else f" resume on {len(files)} ranks"
            )
            raise StateMismatchError(
                f"the state of {name}{which} was another one on each of the {len(files)} ranks that saved it, and "
                f"another number of ranks cannot take it up;{cure}."
            )
    return {path: tensor for path, tensor in first["own"].items() if path[0] in parts}


def _check_same_parts(saved: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    optional = {_BY_PLACE}
    missing = [name for name in saved if name not in parts and name not in optional]
    new = [name for name in parts if name not in saved and name not in optional]
    if missing or new:
        said = [f"{name} was saved, and is not given to load()" for name in missing]
        said += [f"{name} is given to load(), and was not saved" for name in new]
        raise StateMismatchError(
            f"{'; '.join(said)}. Give load() what save() was given, and attach() the same scheduler and scaler; "
            "nothing was loaded."
        )


def _check_undamaged(
    path: tree.Path,
    tensor: Tensor,
    was_sharded: bool,
    expected: Any,
    of_others: Callable[[tree.Path], Iterator[object]],
    target: Path,
) -> None:
    found = checksum(tensor)
    if was_sharded != is_dtensor(tensor) or (was_sharded and found[1] != expected[1]):
        return  # another part of it than this rank had saved
    # On another mesh this rank may hold a part of the same shape that another rank had.
    if found != expected and not (was_sharded and found in of_others(path)):
        raise CheckpointError(f"{target} is damaged: {_key(path)} is not what was saved.")


def checksum(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Return a 32-bit checksum of this rank's part of a tensor, and the part's shape."""
    held = stored(tensor.detach())
    numbers = torch.view_as_real(held) if held.is_complex() else held
    flat = numbers.contiguous().cpu().view(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data), tuple(held.shape)


def _mark(path: tree.Path, tensor: Tensor, checked: tuple[int, tuple[int, ...]]) -> int:
    """A number for a tensor's name, type and contents."""
    named = zlib.crc32(repr((path, tensor.dtype, checked[1])).encode())
    return (named << 31) ^ checked[0]


def _key(path: tree.Path) -> str:
    return "/".join(map(str, path))


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
