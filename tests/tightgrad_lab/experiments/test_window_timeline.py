"""Real ranks, real windows; what is accumulated is exact and is sent once."""

from support.row_types import wrong
from tightgrad_lab.experiments.window_timeline.experiment import EXPERIMENT, Settings
from tightgrad_lab.schema.accumulation import WindowTimelineFigure, WindowTimelineRow

SETTINGS = Settings((1, 2), 4, 2, 3, 2, 1, 32, 1)


def test_a_short_run() -> None:
    told: list[float] = []
    found = EXPERIMENT.run(SETTINGS, lambda share, _: told.append(share))
    assert [row["micro_batches"] for row in found.table] == [1, 2]
    assert wrong(found.figure, WindowTimelineFigure, "figure") == []
    for row in found.table:
        assert wrong(row, WindowTimelineRow, "row") == []
        assert max(row["relative_error"]) < 1e-6
        assert row["peak_memory_bytes"] > 0
    once, twice = found.table
    assert once["wire_bytes"] == twice["wire_bytes"] > 0
    assert twice["wire_bytes_if_each_synced"] == 2 * once["wire_bytes_if_each_synced"]
    assert max(twice["relative_error_of_loop"]) > 1e-3
    events = found.figure["events"]
    assert found.backend == "gloo"
    for rank in range(2):
        own = [event for event in events if event["rank"] == rank]
        assert [e["micro_batch"] for e in own if e["kind"] == "backward"] == [0, 1]
        last = max(e["begin"] for e in own if e["kind"] == "backward")
        assert all(e["begin"] >= last for e in own if e["kind"] == "sync")
        assert sum(e["kind"] == "step" for e in own) == 1
    assert found.figure["total_weight"] == sum(e["weight"] for e in events if e["kind"] == "forward")
    assert told == sorted(told)
