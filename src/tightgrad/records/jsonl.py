"""A file with one JSON object a step, on every rank."""

import json
import math
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tightgrad.core.memory import is_out_of_memory
from tightgrad.records.writer import Record, RecordWriter

PLAN_FILE = "plan.json"


def steps_file(rank: int) -> str:
    """Return the name of a rank's file of steps."""
    return "steps.jsonl" if rank == 0 else f"steps.rank{rank}.jsonl"


class Jsonl(RecordWriter):
    """Writes `steps.jsonl` (rank r above 0: `steps.rank<r>.jsonl`), and rank 0 the plan to `plan.json`.

    A run that starts at step 0 overwrites the file; a resumed run appends to it. Inf and NaN are written as null. An
    error that ends a step is written as a last line with `error`, `message` and `out_of_memory`; used as a context
    manager, so is an error in the loop itself. Every line is flushed.

    Args:
        folder: where the files are written; it is created if it does not exist.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._path = self._folder / steps_file(0)
        self._file: IO[str] | None = None
        self._failed: BaseException | None = None

    def start(self, rank: int, ranks: int, plan: Record) -> None:
        """Make the folder; on rank 0, write the plan."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path = self._folder / steps_file(rank)
        if rank == 0:
            (self._folder / PLAN_FILE).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append the record as one line."""
        if self._file is None:
            self._open("a" if record["step"] > 0 else "w")
        self._line(record)

    def failed(self, error: BaseException) -> None:
        """Append the error, once, as one line."""
        if error is self._failed or not isinstance(error, Exception):
            return
        self._failed = error
        if self._file is None:
            self._open("a")
        about = {"error": type(error).__name__, "message": str(error), "out_of_memory": is_out_of_memory(error)}
        self._line(about)

    def close(self) -> None:
        """Close the file of this rank."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, mode: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open(mode, encoding="utf-8")
        weakref.finalize(self, self._file.close)

    def _line(self, record: Record) -> None:
        assert self._file is not None
        self._file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
        self._file.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
