"""What verbs share in talking: JSON on stdout, the report."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tightgrad_lab.environment import environment
from tightgrad_lab.errors import LabError

if TYPE_CHECKING:
    from rich.padding import Padding


def print_json(rows: Sequence[dict[str, Any]], about: dict[str, object] | None = None, **more: object) -> None:
    """Print one object: the environment, the rows and `more`."""
    print(json.dumps({"environment": about or environment(), "rows": list(rows), **more}, indent=2, allow_nan=False))


def indented(text: str) -> "Padding":
    """Rich markup whose every line begins below a heading's text."""
    from rich.padding import Padding

    return Padding(text, (0, 0, 0, 6), expand=False)


def build_report(runs: Path, report: Path) -> Path:
    """Build the report; return its first page.

    Raises:
        LabError: it cannot be built from what is under `runs`.
    """
    from tightgrad_lab.report import build

    return _built(build, runs, report)[0]


def build_slides(runs: Path, report: Path) -> list[Path]:
    """Build the lecture's slides beside the report; return their files.

    Raises:
        LabError: they cannot be built from what is under `runs`.
    """
    from tightgrad_lab.slides import build

    return _built(build, runs, report)


def build_powerpoint(runs: Path, report: Path) -> list[Path]:
    """Build the lecture's PowerPoint files beside the report; return them.

    Raises:
        LabError: they cannot be built from what is under `runs`, or python-pptx is not installed.
    """
    from tightgrad_lab.slides.powerpoint import build_powerpoint as build

    return _built(build, runs, report)


def _built(build: Callable[[Path, Path], list[Path]], runs: Path, report: Path) -> list[Path]:
    from tightgrad_lab.report import ReportError

    try:
        return build(runs, report)
    except ReportError as error:
        raise LabError(str(error)) from error
