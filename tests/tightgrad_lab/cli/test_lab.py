"""The main job, small: real data, real ranks, every file, one JSON object."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import pytest

from tightgrad_lab.cases.image.case import ImageCase
from tightgrad_lab.cli import app as cli
from tightgrad_lab.experiments import factorial

ROW = {
    "case",
    "combination",
    "seed",
    "metric",
    "value",
    "wire_bytes",
    "compression_factor",
    "peak_memory_bytes",
    "step_seconds",
    "skipped_steps",
}
STEP = {
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "clip_coef",
    "wire_bytes",
    "residual_norm",
    "skipped",
    "skip_reason",
    "weight",
    "micro_batches",
    "retries",
    "clip_rate",
    "memory_bytes",
    "compression_cosine",
    "warm_start_overlap",
    "parameter_norm",
    "seconds",
    "stage_seconds",
}
STAGES = ["data", "model", "backward", "accumulate", "guard", "feedback", "encode", "collective", "decode", "clip"]


def train_few(rank, send, jobs):
    """On each rank, with every sixteenth image: what one step shows needs no hundred."""
    load = ImageCase.load

    def few(case):
        return tuple(replace(one, pixels=one.pixels[::16], labels=one.labels[::16]) for one in load(case))

    ImageCase.load = few
    factorial.train_jobs(rank, send, jobs)


def run_lab(folder):
    """Run the command on few images; give its JSON."""
    own = factorial.case_settings

    def tiny(*args, **kwargs):
        return replace(own(*args, **kwargs), batch_size=120, micro_batches=4)

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(factorial, "case_settings", tiny)
        patch.setattr(factorial, "train_jobs", train_few)
        where = ["--runs", str(folder / "runs"), "--report", str(folder / "report")]
        code = cli.run(["lab", "image", "--epochs", "1", *where, "--json"])
    assert code == 0, err.getvalue()
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """One run of the command; gives its JSON and its folder. What was measured for the book is not drawn here."""
    folder, slides = tmp_path_factory.mktemp("lab"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("tightgrad_lab.report.build"), "published", lambda *_: None)
        patch.setattr("tightgrad_lab.cli.lab.build_slides", lambda *where: slides.append(where))
        shown = run_lab(folder)
    assert slides == [(folder / "runs", folder / "report")]
    return shown, folder


@pytest.mark.slow
def test_a_run_ends_with_what_was_measured_for_the_book_and_with_the_slides(tmp_path, lab):
    run_lab(tmp_path)
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"index.html", "book.html", "book.zh.html", "slides.en.html", "slides.zh.html"} <= written
    drawn = [(folder / "report" / "book.html").read_text("utf-8").count("<svg") for folder in (tmp_path, lab[1])]
    assert drawn[0] > drawn[1], "published results are drawn where the run has none"


def test_json_has_a_row_for_each_combination(lab):
    shown, folder = lab
    assert shown.keys() == {"environment", "rows", "experiments", "report"}
    assert [row["combination"] for row in shown["rows"]] == list(factorial.COMBINATIONS)
    assert all(row.keys() == ROW for row in shown["rows"])
    assert shown["report"] == str(folder / "report" / "index.html")
    assert (folder / "report" / "index.html").is_file()
    assert shown["environment"]["backend"] == "gloo"


def test_compression_factor_comes_from_counted_bytes(lab):
    rows = {row["combination"]: row for row in lab[0]["rows"]}
    for name, row in rows.items():
        if "compress" in name:
            dense = rows[factorial.without_compression(name)]["wire_bytes"]
            assert row["compression_factor"] == dense / row["wire_bytes"] > 4
        else:
            assert row["compression_factor"] == 1.0


def test_accumulation_saves_memory(lab):
    rows = {row["combination"]: row for row in lab[0]["rows"]}
    assert rows["accumulate"]["peak_memory_bytes"] < 0.7 * rows["none"]["peak_memory_bytes"]
    assert rows["clip+accumulate"]["peak_memory_bytes"] < 0.7 * rows["clip"]["peak_memory_bytes"]


@pytest.mark.parametrize("combination", factorial.COMBINATIONS)
def test_files_of_a_run(lab, combination):
    folder = lab[1] / "runs" / "image" / combination / "seed0"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "environment.json",
        "model.safetensors",
        "steps.jsonl",
        "summary.json",
    }
    config, summary = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "summary"))
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert config["plan"] == json.loads(factorial.make_plan(combination, _settings()).to_json())
    assert config["command"] == "tightgrad lab image --epochs 1"
    assert [step["step"] for step in steps] == list(range(4))
    assert all(step.keys() == STEP for step in steps)
    assert all((step["clip_coef"] is not None) == ("clip" in combination) for step in steps)
    assert all((step["residual_norm"] is not None) == ("compress" in combination) for step in steps)
    assert all(step["micro_batches"] == (4 if "accumulate" in combination else 1) for step in steps[:-1])
    assert summary["wire_bytes"] == sum(step["wire_bytes"] for step in steps)
    assert summary["epochs"][-1]["value"] == summary["value"]
    assert (summary["train_samples"], summary["test_samples"]) == (375, 63)


def _settings():
    return replace(factorial.case_settings("image", full=False, seeds=None, epochs=1), batch_size=120, micro_batches=4)


def test_flow_has_every_stage_with_measured_bytes(lab):
    flow = json.loads((lab[1] / "runs" / "image" / "flow.json").read_text())
    stages = {stage["id"]: stage for stage in flow["stages"]}
    assert list(stages) == [*STAGES, "optimizer"]
    assert stages["data"] == {"id": "data", "shape": [15, 1, 28, 28], "bytes": 15 * 28 * 28 * 4}
    assert stages["encode"]["bytes"] <= stages["collective"]["bytes"] < stages["backward"]["bytes"]
    assert all(stages[name]["seconds"] > 0 for name in STAGES if name not in ("data", "feedback"))


def test_plans_survive_json():
    for combination in factorial.COMBINATIONS:
        plan = factorial.make_plan(combination, _settings())
        assert type(plan).from_json(plan.to_json()) == plan
        assert not plan.is_empty


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    arguments = ["tightgrad_lab.cli", "lab", "image", "--epochs", "1", "--json"]
    done = subprocess.run(
        [*program, *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(done.stdout)["rows"]) == len(factorial.COMBINATIONS)
