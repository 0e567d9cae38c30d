"""Keeps data sets in the user's cache: whole and checked, or not at all."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from tightgrad_lab.errors import DataError
from tightgrad_lab.fetch.dataset import Dataset, Report, Source, SourceError, sha256_of

MANIFEST = "manifest.json"
WORK = "downloads"


@dataclass(frozen=True)
class Got:
    """A data set that is at hand.

    Args:
        folder: where its files are.
        source: where they came from.
        fetched: whether now; else they were there.
        unreachable: the sources that were tried before, each with its reason.
    """

    folder: Path
    source: str
    fetched: bool
    unreachable: tuple[str, ...]


def cache_folder() -> Path:
    """The folder of all data sets."""
    return user_cache_path("tightgrad") / "data"


def is_cached(dataset: Dataset, cache: Path | None = None) -> bool:
    """Whether it was fetched and checked."""
    return _manifest(dataset, (cache or cache_folder()) / dataset.name) is not None


def need(name: str) -> Path:
    """The folder of a data set, fetched if it is not there.

    Raises:
        DataError: no source of it can be reached.
    """
    from tightgrad_lab.fetch.catalogue import find

    return get(find(name)).folder


def get(
    dataset: Dataset,
    start: Callable[[Source], Report] | None = None,
    cache: Path | None = None,
    *,
    again: bool = False,
) -> Got:
    """Fetch a data set unless it is there.

    Args:
        dataset: which.
        start: called before each source is tried; gives what is told of its progress.
        cache: the folder of all data sets.
        again: also if it is there.

    Raises:
        DataError: no source of it can be reached; the message says why for each.
    """
    cache = cache or cache_folder()
    folder = cache / dataset.name
    source = None if again else _manifest(dataset, folder)
    if source is not None:
        return Got(folder, source, False, ())
    work = cache / WORK
    work.mkdir(parents=True, exist_ok=True)
    reasons: list[str] = []
    for one in dataset.sources:
        try:
            found = one.fetch(work, start(one) if start else _ignore)
            _write(dataset, folder, found, one.describe())
        except SourceError as error:
            reasons.append(f"{one.describe()}: {error}")
        else:
            return Got(folder, one.describe(), True, tuple(reasons))
    raise DataError(f"{dataset.name} cannot be had. " + "; ".join(reasons) + ".")


def _write(dataset: Dataset, folder: Path, found: dict[str, bytes], source: str) -> None:
    partial = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, content in found.items():
        (partial / name).write_bytes(content)
    wrong = [name for name in dataset.files if sha256_of(partial / name) != dataset.files[name]]
    if wrong or found.keys() != dataset.files.keys():
        shutil.rmtree(partial)
        raise SourceError(f"its content differs from what was published ({', '.join(wrong) or 'other files'})")
    (partial / MANIFEST).write_text(json.dumps({"source": source, "files": dict(dataset.files)}, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _manifest(dataset: Dataset, folder: Path) -> str | None:
    """Where the files came from; None if they are not there, or are those of another version."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = found.get("files") == dict(dataset.files) and all((folder / name).is_file() for name in dataset.files)
    return str(found["source"]) if whole else None


def _ignore(done: int, total: int | None) -> None:
    return None
