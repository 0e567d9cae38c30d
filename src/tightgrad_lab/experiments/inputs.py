"""Whether a result still belongs to what would be run: settings, source, data and versions, as one digest."""

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tightgrad
import tightgrad_lab

_SOURCES = ("bench", "cases", "data", "experiments", "network", "training")


def digest(settings: Any, files: Iterable[Path] = ()) -> str:
    """A digest of the settings (JSON values), the package's code and data, torch's version, and `files`."""
    parts = [json.dumps(settings, sort_keys=True), _code(), version("torch")]
    parts += [f"{path.name} {_file(path)}" for path in sorted(files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _code() -> str:
    library, lab = (Path(str(package.__file__)).parent for package in (tightgrad, tightgrad_lab))
    found = sorted(library.rglob("*.py"))
    for name in _SOURCES:
        found += sorted(path for path in (lab / name).rglob("*") if path.is_file() and path.suffix != ".pyc")
    lines = (f"{path.relative_to(library.parent).as_posix()} {_file(path)}" for path in found)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
