"""Every brace of a measured sentence is a fact of its measurement, and facts are those of the result's rows."""

import re
from pathlib import Path
from typing import Any

import pytest

from browser.fixture_runs import write_runs
from support.drawing import write_result
from tightgrad_lab.report.book import chapters
from tightgrad_lab.report.book.facts import MEASURED
from tightgrad_lab.report.claims.judgement import Number
from tightgrad_lab.report.files import Runs
from tightgrad_lab.schema import published_files

FAMILIES = ("quantise", "sparsify", "sign")
STATED = ("small_batches", "critical_batch", "muon")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A factorial of every case, the published results, and small ones for the experiments that have none."""
    root = write_runs(tmp_path_factory.mktemp("facts") / "runs", seeds=2)
    for path in published_files():
        (root / path.stem).mkdir()
        (root / path.stem / "result.json").write_bytes(path.read_bytes())
    for name, (figure, table) in SMALL.items():
        write_result(root, name, {"steps": 1}, figure, table)
    return Runs(root)


def _spiky(method: str, spikes: int) -> dict[str, Any]:
    run = {"spikes": spikes, "final_loss": 2.0, "clip_rate": 0.1, "usual_norm": 0.5, "outlier_norm": 6.0}
    return {"method": method, "runs": [run | {"spikes": spikes + seed % 2} for seed in range(3)]}


SMALL: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "clip_geometry": ({}, [{"method": "value", "cosine": [0.9, 0.8]}, {"method": "global_norm", "cosine": [1.0, 1.0]}]),
    "window_timeline": (
        {},
        [
            {
                "micro_batches": count,
                "peak_memory_bytes": 100 // count,
                "relative_error": [1e-7],
                "relative_error_of_loop": [0.1 * count],
            }
            for count in (1, 4)
        ],
    ),
    "accumulation_memory": (
        {"points": [{"micro_batch": b, "peak_memory_bytes": [10 + b]} for b in (1, 32)], "fixed_bytes": 9},
        [],
    ),
    "codec_gallery": (
        {"families": [{"family": f, "compression_factor": 8.0, "relative_error": 0.1} for f in FAMILIES]},
        [],
    ),
    "loss_spikes": ({}, [_spiky("none", 9), _spiky("global_norm", 1), _spiky("zclip", 1)]),
    "encode_timeline": (
        {
            "lanes": [
                {"plan": "dense", "seconds": {"collective": 0.01}, "wire_bytes": 1000},
                {"plan": "sparsify", "seconds": {"encode": 0.02, "collective": 0.01, "decode": 0.03}, "wire_bytes": 10},
            ]
        },
        [],
    ),
    "common_failures": ({}, [{"named": 2, "cured": 1, "before": [1.0, 2.0]}]),
}  # fmt: skip


def used() -> dict[str, set[str]]:
    """The facts that the text asks of each measurement."""
    found: dict[str, set[str]] = {}
    for path in (Path(chapters.__file__).parent / "en").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        for name, sentence in re.findall(r"^@measured (\w+)\n(.+?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL):
            found.setdefault(name, set()).update(re.findall(r"\{(\w+)\}", sentence))
    return found


def test_every_measurement_is_used() -> None:
    assert used().keys() == MEASURED.keys()


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in STATED])
def test_the_facts_of_a_sentence_exist(runs: Runs, name: str) -> None:
    case = name if name in ("text", "translation", "series") else None
    finding = MEASURED[name](runs)
    if case is not None:
        assert finding is None  # the fixture has the image case only; its facts are the same
        finding = MEASURED["image"](runs)
    assert finding is not None
    assert used()[name] <= finding.facts.keys()


@pytest.mark.parametrize("name", MEASURED)
def test_without_a_result_there_is_no_sentence(tmp_path: Path, name: str) -> None:
    assert MEASURED[name](Runs(tmp_path)) is None


@pytest.mark.parametrize(
    ("name", "fact", "value"),
    [
        ("turn", "norm", 1.0),
        ("turn", "lowest", 0.8),
        ("memory", "most_bytes", 42.0),
        ("memory", "fixed", 9.0),
        ("stages", "own", 0.06),
        ("stages", "fewer", 100.0),
        ("room", "outlier", 6.0),
        ("cured", "cured", 1.0),
        ("exact", "loop", 0.4),
        ("windows", "right", 4.0),
    ],
)
def test_facts_are_those_of_the_rows(runs: Runs, name: str, fact: str, value: float) -> None:
    finding = MEASURED[name](runs)
    assert finding is not None
    found = finding.facts[fact]
    assert isinstance(found, Number)
    assert found.value == pytest.approx(value)
