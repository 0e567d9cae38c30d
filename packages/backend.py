"""The build backend: hatchling, told first how the extra `lab` reaches the lab.

The wheel of `tightgrad` is the library alone. The lab (`tightgrad_lab`, with its data) is a distribution of its own,
`tightgrad-lab`, made from `packages/lab`. The extra `lab` of the library refers to it in one of three ways:

- an editable install has the lab already, in `src`, so it needs no distribution;
- in a checkout the extra builds it from the folder beside this file;
- elsewhere, and in a release (`TIGHTGRAD_RELEASE=1`), it is the distribution of the same version.
"""

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NOT_NEEDED = '; python_version < "3"'


def lab(root: Path = ROOT, *, editable: bool = False) -> str:
    """Return what follows the name `tightgrad-lab` in the requirement of the extra."""
    if editable:
        return NOT_NEEDED
    folder = root / "packages" / "lab"
    if folder.is_dir() and os.environ.get("TIGHTGRAD_RELEASE") != "1":
        return f"@ {folder.as_uri()}"
    found = re.search(r'__version__ = "(.+)"', (root / "src/tightgrad/version.py").read_text(encoding="utf-8"))
    assert found is not None, "src/tightgrad/version.py says no version"
    return f"=={found[1]}"


def _told(name: str, *arguments: Any, editable: bool = False) -> Any:
    from hatchling import build as hatchling

    os.environ["TIGHTGRAD_LAB"] = lab(editable=editable)  # read by the extra `lab` in pyproject.toml
    return getattr(hatchling, name)(*arguments)


def get_requires_for_build_wheel(*arguments: Any) -> Any:
    return _told("get_requires_for_build_wheel", *arguments)


def get_requires_for_build_sdist(*arguments: Any) -> Any:
    return _told("get_requires_for_build_sdist", *arguments)


def get_requires_for_build_editable(*arguments: Any) -> Any:
    return _told("get_requires_for_build_editable", *arguments, editable=True)


def build_wheel(*arguments: Any) -> Any:
    return _told("build_wheel", *arguments)


def build_sdist(*arguments: Any) -> Any:
    return _told("build_sdist", *arguments)


def build_editable(*arguments: Any) -> Any:
    return _told("build_editable", *arguments, editable=True)
