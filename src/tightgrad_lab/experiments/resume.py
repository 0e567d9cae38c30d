"""Whether a run's files belong to the run that is asked for, and how far they go."""

import json
from pathlib import Path
from typing import Any

from tightgrad_lab.errors import RunError
from tightgrad_lab.training.checkpoint import has_checkpoint

CHECKPOINT = "checkpoint"
_FREE = ("command",)
"""What may differ."""


def finished(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of a finished run; None if it is not finished.

    Raises:
        RunError: it is finished, but was another run.
    """
    path = folder / "summary.json"
    if not path.is_file():
        return None
    _check_same(folder, config)
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary


def resumable(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a run was begun and can go on.

    Raises:
        RunError: what was begun was another run.
    """
    if not has_checkpoint(folder / CHECKPOINT):
        return False
    _check_same(folder, config)
    return True


def _check_same(folder: Path, config: dict[str, Any]) -> None:
    path = folder / "config.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    expected = json.loads(json.dumps(config))
    differing = [key for key in expected if key not in _FREE and found.get(key) != expected[key]]
    if differing:
        raise RunError(
            f"{path} is of a run with other {' and '.join(differing)}; ask for the same again, or leave --resume out."
        )
