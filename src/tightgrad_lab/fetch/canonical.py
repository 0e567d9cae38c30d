"""Sources that users with internet use: the standard loaders where they are installed, and plain addresses."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tightgrad_lab.fetch.dataset import Report, Source, SourceError
from tightgrad_lab.fetch.download import download
from tightgrad_lab.fetch.prepare import image_files


@dataclass(frozen=True)
class Address(Source):
    """One file at a fixed address; a stopped download goes on.

    Args:
        url: where it is.
        sha256: of what is there.
        prepare: makes the data set's files of it.
    """

    title: ClassVar[str] = "address"

    url: str
    sha256: str
    prepare: Callable[[bytes], dict[str, bytes]]

    def describe(self) -> str:
        """The address."""
        return self.url

    def fetch(self, work: Path, report: Report) -> dict[str, bytes]:
        """Download, check, prepare."""
        try:
            import requests
        except ImportError:
            raise SourceError("requests is not installed: pip install 'tightgrad[data]'") from None
        target = work / self.url.rpartition("/")[2]
        with requests.Session() as session:
            download(session, self.url, target, self.sha256, report)
        found = self.prepare(target.read_bytes())
        target.unlink()
        return found


@dataclass(frozen=True)
class Torchvision(Source):
    """A data set of images that torchvision loads.

    Args:
        loader: class in `torchvision.datasets`, with `root`, `train` and `download`.
    """

    title: ClassVar[str] = "torchvision"

    loader: str

    def describe(self) -> str:
        """The loader."""
        return f"torchvision.datasets.{self.loader}"

    def fetch(self, work: Path, report: Report) -> dict[str, bytes]:
        """Let torchvision download it."""
        try:
            from torchvision import datasets  # type: ignore[import-not-found,unused-ignore]
        except Exception as error:  # a torchvision beside the wrong torch raises RuntimeError
            raise SourceError(f"torchvision cannot be imported ({type(error).__name__})") from error
        import numpy as np

        arrays: dict[str, Any] = {}
        try:
            for part, train in (("train", True), ("test", False)):
                found = getattr(datasets, self.loader)(root=str(work), train=train, download=True)
                arrays[f"{part}_images"], arrays[f"{part}_labels"] = np.asarray(found.data), np.asarray(found.targets)
        except Exception as error:  # urllib's, and RuntimeError for a wrong checksum
            raise SourceError(f"it failed ({type(error).__name__})") from error
        return image_files(arrays)


@dataclass(frozen=True)
class HuggingFace(Source):
    """A data set of the Hugging Face hub, through `datasets`.

    Args:
        path: of the data set.
        config: its configuration; "" for its only one.
        prepare: makes the data set's files of the splits.
    """

    title: ClassVar[str] = "Hugging Face"

    path: str
    config: str
    prepare: Callable[[Mapping[str, Any]], dict[str, bytes]]

    def describe(self) -> str:
        """The call."""
        config = f", {self.config!r}" if self.config else ""
        return f"datasets.load_dataset({self.path!r}{config})"

    def fetch(self, work: Path, report: Report) -> dict[str, bytes]:
        """Let `datasets` download it."""
        try:
            from datasets import load_dataset  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise SourceError("datasets is not installed") from None
        with tempfile.TemporaryDirectory(dir=work) as folder:
            try:
                splits = load_dataset(self.path, self.config or None, cache_dir=folder)
                return self.prepare({name: list(rows) for name, rows in splits.items()})
            except Exception as error:  # whatever the hub and its client raise
                raise SourceError(f"it failed ({type(error).__name__})") from error
