"""Results of pairs as a test wants them; written to runs/ for the report to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.drawing import write_result
from tightgrad_lab.report.measured.files import Runs


def runs_with(root: Path, **pairs: tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]) -> Runs:
    """Runs with results of these pairs: accuracy_vs_bytes=(figure, table)."""
    root.mkdir(parents=True, exist_ok=True)
    for name, (figure, table) in pairs.items():
        write_result(root, name, {}, dict(figure), [dict(row) for row in table])
    return Runs(root)


def compressed(method: str, feedback: str, accuracy: Sequence[float], factor: float, **more: Any) -> dict[str, Any]:
    """A row of table 11."""
    row = {
        "method": method,
        "family": "quantise",
        "feedback": feedback,
        "accuracy": list(accuracy),
        "loss": [1 - value for value in accuracy],
        "wire_bytes": [round(1e6 / factor)] * len(accuracy),
        "compression_factor": [factor] * len(accuracy),
        "last_step_factor": [factor] * len(accuracy),
        "step_seconds": [0.1] * len(accuracy),
        "residual_norm": [None] * len(accuracy),
        "diverged": 0,
    }
    return row | more


def batch(size: int, rule: str, accuracy: Sequence[float], **more: Any) -> dict[str, Any]:
    """A row of table 9."""
    row = {
        "batch": size,
        "rule": rule,
        "learning_rate": 0.01 * size / 32,
        "steps": 6000 // size,
        "accuracy": list(accuracy),
        "loss": [0.1] * len(accuracy),
        "diverged": 0,
    }
    return row | more
