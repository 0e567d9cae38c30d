"""The states that a window passes, as run; and what gradient other frameworks step with on the same windows.

Frameworks that this machine lacks keep their rows of the published result, each with the time of its measurement; one
that is not in there either has a row that says so.
"""

import json
from typing import Any

from tightgrad_lab import schema
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.experiments.window_states.loops import CONTESTANTS, Contestant, Job, measure
from tightgrad_lab.experiments.window_states.ranks import FITS, SAMPLES, out_of_memory
from tightgrad_lab.experiments.window_states.ranks import measure as measure_ranks
from tightgrad_lab.experiments.window_states.settings import Settings
from tightgrad_lab.experiments.window_states.windows import SCENARIOS
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.schema.accumulation import (
    OutOfMemoryCell,
    StateMachine,
    StepCell,
    WindowStatesFigure,
    WindowStatesRow,
)
from tightgrad_lab.training.ranks import run_ranks

PUBLISHED = schema.PUBLISHED / "window_states.json"
CELLS = ("equal", "ragged", "partial", "next", "empty")
"""What each loop is judged by, in the order of the columns; "out_of_memory" comes last, for loops of several ranks."""
ON_RANKS = {"loop": "loss / K, DDP no_sync", "tightgrad": "tg.Accumulate(K), DDP"}
"""The loops that are run on two ranks as well, and how their rows name them."""
SHARE_OF_RANKS, SHARE_OF_LOOPS = 0.25, 0.5


class WindowStates(Experiment[Settings]):
    """The window, and the frameworks."""

    def settings(self, *, full: bool) -> Settings:
        """A small transformer in the figure, or a larger one; loops meet the same draws, so that rows compare."""
        installed = {name: contestant.version for name, contestant in CONTESTANTS.items()}
        if full:
            return Settings(4, 8, 256, 4, seeds=5, frameworks=installed)
        return Settings(4, 4, 128, 2, seeds=5, frameworks=installed)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Ranks first, then each loop in a process, then ranks that run out of memory."""
        found: dict[str, Any] = {}
        report(0.0, "two ranks")
        run_ranks(settings.ranks, measure_ranks, (settings,), lambda message: found.update([message]))
        slowest_first = reversed(CONTESTANTS)  # what takes long to import stands at the end
        names = [name for name in slowest_first if settings.frameworks.get(name) is not None]
        end = SHARE_OF_RANKS + SHARE_OF_LOOPS
        measured = run_all(measure, [Job(name, settings.seeds) for name in names], report, share=(SHARE_OF_RANKS, end))
        alone = dict(zip(names, measured, strict=True))
        memory = out_of_memory(settings, lambda name: report(end, f"out of memory: {name}"))
        machine: StateMachine = found["machine"]
        figure: WindowStatesFigure = {
            **machine,
            "tokens": {name: [list(own) for own in scenario.tokens] for name, scenario in SCENARIOS.items()},
            "memory": {"samples": SAMPLES, "fits": FITS},
        }
        return Measured(figure, make_table(alone, found["cells"], memory), backend="gloo")


def make_table(
    alone: dict[str, dict[str, StepCell]], on_ranks: dict[str, dict[str, StepCell]], memory: dict[str, OutOfMemoryCell]
) -> list[WindowStatesRow]:
    """All rows, in the order of CONTESTANTS.

    Args:
        alone: the cells of each contestant that was run.
        on_ranks: those of the loops that were run on several ranks.
        memory: what happened when a rank ran out of memory.
    """
    rows: list[WindowStatesRow] = []
    for name, contestant in CONTESTANTS.items():
        if name not in alone:
            rows.append(published_row(name, contestant))
            continue
        # Accelerate's decorator is its answer to memory, whatever its loop.
        own_memory = memory.get(name) if name not in ON_RANKS else None
        rows.append(row(name, contestant, contestant.method, 1, alone[name], own_memory))
        if name in ON_RANKS:
            rows.append(row(f"{name}_ranks", contestant, ON_RANKS[name], 2, on_ranks[name], memory.get(name)))
    return rows


def row(
    name: str,
    contestant: Contestant,
    method: str,
    ranks: int,
    cells: dict[str, StepCell],
    memory: OutOfMemoryCell | None,
) -> WindowStatesRow:
    """One row as JSON values."""
    return {
        "loop": name,
        "framework": contestant.framework,
        "version": contestant.version,
        "method": method,
        "ranks": ranks,
        "equal": cells.get("equal"),
        "ragged": cells.get("ragged"),
        "partial": cells.get("partial"),
        "next": cells.get("next"),
        "empty": cells.get("empty"),
        "out_of_memory": memory,
        "measured": None,
    }


def published_row(name: str, contestant: Contestant) -> WindowStatesRow:
    """The published row of a framework that is not installed, with the time at which it was "measured"."""
    if PUBLISHED.exists():
        published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
        table: list[WindowStatesRow] = published["table"]
        for found in table:
            if found["loop"] == name and found["version"] is not None and found["measured"] is None:
                return {**found, "measured": published["environment"]["time"]}
    return row(name, contestant, contestant.method, 1, {}, None)


EXPERIMENT = WindowStates()
