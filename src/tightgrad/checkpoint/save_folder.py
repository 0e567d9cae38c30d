"""Names and files of checkpoints on a disk that all ranks share.

    folder/latest                        "step-00000042-2 4": the newest complete checkpoint, and its number of ranks
    folder/step-00000042/rank-00001-of-00004.safetensors
    folder/step-00000042-2/rank-00001-of-00004.safetensors      a second save at step 42

Every save makes a folder that did not exist, so no save ever touches the files of another one. Versions before this
one wrote all saves of a step to one folder; those are read as well.
"""

import errno
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tightgrad.core.errors import CheckpointError

LATEST = "latest"
FILE_SUFFIX = ".safetensors"
_FOLDER = re.compile(r"step-(\d{8,18})(?:-([2-9]|[1-9]\d{1,8}))?")
_LATEST = re.compile(rf"({_FOLDER.pattern}) ([1-9]\d{{0,8}})")
_LATEST_NBYTES = 64  # more than it has
# Not every file system can flush a folder, and Windows cannot open one.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.EBADF}


@dataclass(frozen=True, slots=True)
class Newest:
    """Holds what `latest` says: the `number`-th save at `step`, of `world_size` ranks."""

    step: int
    number: int
    world_size: int

    @property
    def name(self) -> str:
        """Return the name of its folder."""
        return folder_name(self.step, self.number)

    @property
    def text(self) -> str:
        """Return the content of `latest`."""
        return f"{self.name} {self.world_size}"


def folder_name(step: int, number: int = 1) -> str:
    """Return the name of the folder of the `number`-th save at a step."""
    return f"step-{step:08d}" if number == 1 else f"step-{step:08d}-{number}"


def step_of(name: str) -> int | None:
    """Return the step in the name of a checkpoint's folder; None if it is not such a name."""
    match = _FOLDER.fullmatch(name)
    return int(match[1]) if match else None


def file_name(rank: int, world_size: int) -> str:
    """Return the name of one rank's file."""
    return f"rank-{rank:05d}-of-{world_size:05d}{FILE_SUFFIX}"


def newest(folder: Path) -> Newest:
    """Read which checkpoint below `folder` is the newest complete one.

    Raises:
        CheckpointError: there is none.
    """
    try:
        with (folder / LATEST).open("rb") as file:
            text = file.read(_LATEST_NBYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise CheckpointError(
            f"no complete checkpoint in {folder}: {error}. Give the folder that save() was given; where the run "
            "begins, tg.load(..., missing_ok=True) loads nothing and returns 0."
        ) from None
    match = _LATEST.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"{folder / LATEST} holds {text!r}, not a checkpoint and its number of ranks such as 'step-00000042 4'; "
            "write those of the newest complete one into it."
        )
    return Newest(int(match[2]), int(match[3] or 1), int(match[4]))


def make_folder(folder: Path, step: int) -> int:
    """Make a new folder for a save at `step`, and return its number. Called by one rank; the others call
    `enter_folder`.

    Making a folder fails if it exists, on network file systems too, so two runs never get the same one; what a listing
    of `folder` does not show yet only costs another attempt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    matches = (_FOLDER.fullmatch(name) for name in os.listdir(folder))
    number = 1 + max((int(match[2] or 1) for match in matches if match and int(match[1]) == step), default=0)
    while True:
        try:
            (folder / folder_name(step, number)).mkdir()
        except FileExistsError:
            number += 1
        else:
            sync_folder(folder)
            return number


def enter_folder(target: Path) -> None:
    """Raise `OSError` unless `target`, which another rank has made, exists on this rank too."""
    try:
        target.mkdir()  # asks the server, where a network file system may answer a look-up from its cache
    except FileExistsError:
        return
    except FileNotFoundError:
        pass
    else:
        target.rmdir()
    raise OSError(
        f"rank 0 made {target}, but this rank does not see it; give every rank the same folder, on a disk that all "
        "ranks share"
    )


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _CANNOT_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def remove_files(target: Path, names: list[str] | None) -> None:
    """Remove this rank's files of a save that failed; whichever rank comes last removes the folder.

    Args:
        target: the save's folder.
        names: of the files; None removes all, when no rank writes there any more.
    """
    if names is None:
        with suppress(OSError):
            names = os.listdir(target)
    for name in names or []:
        with suppress(OSError):
            (target / name).unlink(missing_ok=True)
    with suppress(OSError):
        target.rmdir()
