"""One line that says how the run is going."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tightgrad.records.writer import Record, RecordWriter

LIVE_SECONDS = 0.2
FILE_SECONDS = 10.0
_UNITS = ("B", "kB", "MB", "GB", "TB")


class Terminal(RecordWriter):
    """Shows the last step on rank 0: in a terminal, in a line that is overwritten; elsewhere, in a new line every ten
    seconds.

    Args:
        stream: where lines are written; None is stderr.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._live = self._stream.isatty()
        self._speaks = True
        self._started: float | None = None
        self._shown = float("-inf")
        self._steps = self._skipped = self._width = 0
        self._last: Record | None = None
        self._window = self._of = 0

    def start(self, rank: int, ranks: int, plan: Record) -> None:
        """Show records on rank 0 only."""
        self._speaks = rank == 0

    def begin(self, windows: int | None) -> None:
        """Count windows from the first one again, and show of how many, where that is known."""
        self._window, self._of = 0, windows or 0

    def write(self, record: Record) -> None:
        """Show the record, unless the last one was shown too short a time ago."""
        if not self._speaks:
            return
        now = self._clock()
        if self._started is None:
            self._started = now
        else:
            self._steps += 1  # the first step's own time is not known
        self._skipped += bool(record["skipped"])
        self._window += record.get("weight") != 0 or record.get("skip_reason") == "zero_weight"  # and not a flush()
        self._last = record
        if now - self._shown >= (LIVE_SECONDS if self._live else FILE_SECONDS):
            self._show(record, now)

    def close(self) -> None:
        """Show the last record, if it was not shown yet."""
        if self._last is not None and self._started is not None:
            self._show(self._last, self._clock())
            if self._live:
                self._stream.write("\n")
            self._stream.flush()
            self._last = None

    def _show(self, record: Record, now: float) -> None:
        assert self._started is not None
        elapsed = now - self._started
        line = line_of(record, self._steps / elapsed if elapsed > 0 and self._steps else None, self._skipped)
        if 1 < self._of >= self._window > 0:  # frameworks begin each window by itself
            line += f"  window {self._window} of {self._of}"
        padding = " " * max(0, self._width - len(line))
        self._stream.write(f"\r{line}{padding}" if self._live else f"{line}\n")
        self._stream.flush()
        self._shown, self._width = now, len(line)


def line_of(record: Record, steps_per_second: float | None, skipped: int) -> str:
    """Format a record as one line; what was not measured is left out."""
    parts = [f"step {record['step']}"]
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.4g}")
    if record.get("grad_norm") is not None:
        parts.append(f"norm {record['grad_norm']:.3g}")
    if record.get("clip_coef") is not None:
        rate = record.get("clip_rate")
        often = "" if rate is None else f" ({rate:.0%} of steps)"
        parts.append(f"clipped to {record['clip_coef']:.2g}{often}")
    if record.get("residual_norm") is not None:
        parts.append(f"residual {record['residual_norm']:.3g}")
    if record.get("wire_bytes"):
        parts.append(f"sent {nbytes_text(record['wire_bytes'])}")
    if record.get("memory_bytes"):
        parts.append(f"memory {nbytes_text(record['memory_bytes'])}")
    if skipped:
        parts.append(f"skipped {skipped}")
    if steps_per_second is not None:
        parts.append(f"{steps_per_second:.3g} steps/s")
    return "  ".join(parts)


def nbytes_text(nbytes: float) -> str:
    """Format bytes with a unit and three digits."""
    place = 0
    while abs(nbytes) >= 1000 and place < len(_UNITS) - 1:
        nbytes /= 1000
        place += 1
    return f"{nbytes:.3g} {_UNITS[place]}"
