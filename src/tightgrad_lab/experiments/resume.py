"""Whether a run's files belong to the run that is asked for, and how far they go."""

import json
from pathlib import Path
from typing import Any

from tightgrad_lab.errors import RunError
from tightgrad_lab.training.checkpoint import has_checkpoint

CHECKPOINT = "checkpoint"
_FREE = ("command",)
"""What may differ."""


def finished(folder: Path, config: dict[str, Any], inputs: str) -> dict[str, Any] | None:
    """The summary of a finished run; None if there is none of this run with these inputs.

    Args:
        folder: of the run.
        config: as it would be written now.
        inputs: digest of everything that the run depends on.
    """
    path = folder / "summary.json"
    if not path.is_file() or _differing(folder, config):
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary if summary.get("inputs") == inputs else None


def resumable(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a run was begun and can go on.

    Raises:
        RunError: what was begun was another run.
    """
    if not has_checkpoint(folder / CHECKPOINT):
        return False
    differing = _differing(folder, config)
    if differing:
        raise RunError(
            f"{folder / 'config.json'} is of a run with other {' and '.join(differing)}; "
            "ask for the same again, or leave --resume out."
        )
    return True


def _differing(folder: Path, config: dict[str, Any]) -> list[str]:
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    expected = json.loads(json.dumps(config))
    return [key for key in expected if key not in _FREE and found.get(key) != expected[key]]
