"""Every brace of a measured sentence is a fact of its measurement, and facts are those of the result's rows."""

import re
from pathlib import Path
from typing import Any

import pytest

from browser.fixture_runs import write_runs
from support.drawing import content, write_result
from tightgrad_lab.report import units
from tightgrad_lab.report.book import chapters
from tightgrad_lab.report.book.facts import MEASURED, case_clips, case_memory, of_case
from tightgrad_lab.report.book.table_facts import CODECS
from tightgrad_lab.report.claims.judgement import Number
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.pairs import window_states
from tightgrad_lab.schema import published_files

FAMILIES = ("quantise", "sparsify", "sign")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A factorial of every case, the published results, and small ones for the experiments that have none."""
    root = write_runs(tmp_path_factory.mktemp("facts") / "runs", seeds=2)
    for path in published_files():
        (root / path.stem).mkdir()
        (root / path.stem / "result.json").write_bytes(path.read_bytes())
    for name, (figure, table) in SMALL.items():
        if not (root / name).is_dir():
            write_result(root, name, {"steps": 1, "spikes": {"outliers": 4}}, figure, table)
    return Runs(root)


def _spiky(method: str, spikes: int) -> dict[str, Any]:
    run = {"spikes": spikes, "final_loss": 2.0, "clip_rate": 0.1, "usual_norm": 0.5, "outlier_norm": 6.0}
    return {"method": method, "runs": [run | {"spikes": spikes + seed % 2} for seed in range(3)]}


def _loss(loss: float, **more: Any) -> dict[str, Any]:
    return {**more, "loss": [loss, loss + 0.01, loss - 0.01]}


SMALL: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "clip_geometry": (
        {},
        [
            {"method": method, "cosine": cosines, "bias": 0.1, "time_ratio_to_torch": 1.5}
            for method, cosines in {
                "value": [0.9, 0.8],
                "global_norm": [1.0, 1.0],
                "per_tensor_norm": [0.9, 1.0],
                "agc": [0.9, 1.0],
                "autoclip": [1.0, 1.0],
            }.items()
        ],
    ),
    "window_timeline": (
        {},
        [
            {
                "micro_batches": count,
                "peak_memory_bytes": 100 // count,
                "seconds_per_sample": 0.1 * count,
                "wire_bytes": 10,
                "wire_bytes_if_each_synced": 10 * count,
                "relative_error": [1e-7],
                "relative_error_of_loop": [0.1 * count],
            }
            for count in (1, 4)
        ],
    ),
    "accumulation_memory": (
        {"points": [{"micro_batch": b, "peak_memory_bytes": [10 + b]} for b in (1, 32)], "fixed_bytes": 9},
        [{"wrapper": name, "peak_memory_bytes": [9], "wire_bytes": 5} for name in ("ddp", "fsdp2 last", "fsdp2 every")],
    ),
    "codec_gallery": (
        {"families": [{"family": f, "compression_factor": 8.0, "relative_error": 0.1} for f in FAMILIES]},
        [{"codec": codec, "compression_factor": 8.0, "relative_error": 0.1} for codec in CODECS],
    ),
    "loss_spikes": (
        {},
        [_spiky("none", 9), *(_spiky(name, 1) for name in ("global_norm", "zclip", "agc", "autoclip", "adagc"))],
    ),
    "encode_timeline": (
        {
            "lanes": [
                {"plan": "dense", "seconds": {"collective": 0.01}, "wire_bytes": 1000},
                {"plan": "sparsify", "seconds": {"encode": 0.02, "collective": 0.01, "decode": 0.03}, "wire_bytes": 10},
            ]
        },
        [],
    ),
    "small_batches": (
        {},
        [
            _loss(2.5, batch=1, choice="fixed", learning_rate=0.001),
            _loss(2.3, batch=1, choice="held", learning_rate=0.002),
            _loss(2.4, batch=1, choice="rule", learning_rate=0.001),
            _loss(2.6, batch=16, choice="fixed", learning_rate=0.004),
        ],
    ),
    "critical_batch": (
        {"places": [{"place": 10, "critical_batch": 4}, {"place": 20, "critical_batch": 16}]},
        [
            _loss(2.5, plan="small", batches=[4], steps=100),
            _loss(2.6, plan="large", batches=[16], steps=25),
            _loss(2.5, plan="growing", batches=[4, 16], steps=60),
        ],
    ),
    "muon": (
        {},
        [
            {"optimizer": optimizer, "method": method, "runs": [{"spikes": 2, "final_loss": 2.0}]}
            for optimizer in ("muon", "adamw")
            for method in ("none", "global_norm")
        ],
    ),
    "depth": (
        {},
        [
            _loss(1.0 + layers * (0.1 if not shortcuts else 0.0), layers=layers, shortcuts=shortcuts)
            for layers in (8, 32)
            for shortcuts in (False, True)
        ],
    ),
    "common_failures": ({}, [{"named": 2, "cured": 1, "before": [1.0, 2.0]}]),
}  # fmt: skip


def used() -> dict[str, set[str]]:
    """The facts that the text asks of each measurement."""
    found: dict[str, set[str]] = {}
    for path in (Path(chapters.__file__).parent / "en").glob("*.md"):
        text = path.read_text(encoding="utf-8")
        for name, sentence in re.findall(r"^@measured (\w+)\n(.+?)(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL):
            found.setdefault(name, set()).update(re.findall(r"\{(\w+)(?: \?|\})", sentence))
    for rows in (*chapters.read_tables("en").values(), *chapters.read_tables("en", "papers").values()):
        for name, sentence in re.findall(r"@(\w+) (.+)", "\n".join(row[-1] for row in rows)):
            found.setdefault(name, set()).update(re.findall(r"\{(\w+)(?: \?|\})", sentence))
    return found


def test_every_measurement_is_used() -> None:
    assert used().keys() == MEASURED.keys()


OF_CASES = dict.fromkeys(("text", "translation", "series"), MEASURED["image"]) | {
    "text_memory": of_case("image", "image_case", case_memory),
    "translation_clips": of_case("image", "image_case", case_clips),
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_facts_of_a_sentence_exist(runs: Runs, name: str) -> None:
    finding = MEASURED[name](runs)
    if name in OF_CASES:
        assert finding is None  # the fixture has the image case only; its facts are the same
        finding = OF_CASES[name](runs)
    assert finding is not None
    assert used()[name] <= finding.facts.keys()


def test_when_the_bound_acted_is_counted(runs: Runs) -> None:
    """Of the eight steps of the fixture the bound clips the first two."""
    finding = OF_CASES["translation_clips"](runs)
    assert finding is not None
    assert finding.facts == {"clipped": Number(0.25, "percent"), "early": Number(1.0, "percent")}


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
        ("clip_methods", "value_lowest", 0.8),
        ("window_rows", "slower", 4.0),
        ("wrappers", "fsdp2_last_bytes", 5.0),
        ("codecs", "topk_factor", 8.0),
        ("spike_rows", "none_spikes", 28 / 3),
        ("paper_qsgd", "smallest", 100.0),
        ("paper_layers", "layers", 13.0),
    ],
)
def test_facts_are_those_of_the_rows(runs: Runs, name: str, fact: str, value: float) -> None:
    finding = MEASURED[name](runs)
    assert finding is not None
    found = finding.facts[fact]
    assert isinstance(found, Number)
    assert found.value == pytest.approx(value)


def test_a_ragged_window_is_told_with_the_numbers_of_its_table(runs: Runs) -> None:
    """The sentence once had means over the draws of tokens, the table beside it medians and largest errors."""
    finding = MEASURED["windows"](runs)
    assert finding is not None
    _, table = content(window_states.PAIR, runs.root, "en")
    cell = table.rows[0][[column.heading for column in table.columns].index("Ragged")]
    gain, error = finding.facts["gain"], finding.facts["error"]
    assert isinstance(gain, Number)
    assert isinstance(error, Number)
    assert gain.value == cell.value
    assert units.percent_text(error.value) in str(cell.text)


def test_signs_follow_from_the_rows(tmp_path: Path) -> None:
    for name in ("small_batches", "critical_batch", "depth"):
        figure, table = SMALL[name]
        write_result(tmp_path, name, {}, figure, table)
    signs = {name: MEASURED[name](Runs(tmp_path)) for name in ("small_batches", "critical_batch", "paper_depth")}
    assert {name: found.verdict for name, found in signs.items() if found} == dict.fromkeys(signs, "supported")
    held = next(row for row in SMALL["small_batches"][1] if row["choice"] == "held")
    worse = {**held, "loss": [2.7, 2.71, 2.72]}
    rows = [worse if row is held else row for row in SMALL["small_batches"][1]]
    write_result(tmp_path / "other", "small_batches", {}, {}, rows)
    found = MEASURED["small_batches"](Runs(tmp_path / "other"))
    assert found is not None
    assert found.verdict == "refuted"


@pytest.mark.parametrize("name", ["turn", "clip_methods", "families", "clip_cost", "wrappers", "stages"])
def test_a_result_that_lacks_what_a_sentence_needs_is_named(tmp_path: Path, name: str) -> None:
    for pair in ("clip_geometry", "codec_gallery", "clip_stages", "accumulation_memory", "encode_timeline"):
        row = {"method": "value", "wrapper": "ddp"}
        figure = {"families": [], "lanes": [], "points": [], "fixed_bytes": 1}
        write_result(tmp_path, pair, {}, figure, [row])
    with pytest.raises(
        ReportError, match=r"result\.json: .* is not in it\. Delete it and run `tightgrad lab --only \d+`"
    ):
        MEASURED[name](Runs(tmp_path))
