"""Every case, end to end but short: trained by two ranks, measured against simple methods, looked at."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tightgrad_lab.cases import CASES, embedded_variants, full_variants, load_case
from tightgrad_lab.cli import app as cli
from tightgrad_lab.experiments import factorial
from tightgrad_lab.training.model_file import has_model, load_model

QUICK = [("series", "dlinear-24")]
SLOW = [("text", "lstm"), ("text", "bert"), ("series", "lstm-24"), ("translation", "")]
SCORES = {"text": {"accuracy"}, "series": {"mse", "mae"}, "translation": {"bleu", "bleu_beam"}}
ALL = factorial.COMBINATIONS[-1]


def _jobs(runs, chosen):
    """Two epochs of a batch this large, one where that is enough."""
    jobs = []
    for case, variant in chosen:
        settings = factorial.case_settings(
            case, full=False, seeds=1, epochs=1 if chosen == QUICK else 2, variant=variant
        )
        settings = replace(settings, batch_size=480, micro_batches=2)
        jobs += factorial.make_jobs(case, settings, 2, runs, f"tightgrad lab {case}", combinations=[ALL])
    return jobs


@pytest.fixture(
    scope="module", params=[pytest.param(QUICK, id="quick"), pytest.param(SLOW, id="slow", marks=pytest.mark.slow)]
)
def trained(tmp_path_factory, request):
    """Gives the jobs and their rows."""
    jobs = _jobs(tmp_path_factory.mktemp("cases") / "runs", request.param)
    return jobs, factorial.run_jobs(jobs, 2, lambda message: None)


@torch.no_grad()
def _training_loss(case, model):
    """Over the same samples whatever the model: those of a few steps are too few to tell a tenth from chance."""
    train, _ = case.load()
    batches = [case.batch(train, indices) for indices in torch.arange(min(len(train), 2000)).split(250)]
    weights = [float(case.weight(batch)) for batch in batches]
    losses = [float(case.loss(model.eval(), batch)) for batch in batches]
    return sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)


def test_every_case_learns(trained):
    for job, row in zip(*trained, strict=True):
        case = load_case(job.case, job.settings.variant)
        torch.manual_seed(job.seed)
        before, after = _training_loss(case, case.model()), _training_loss(case, load_model(case.model(), job.folder))
        assert after < 0.9 * before, job.folder
        loss = [record["loss"] for record in map(json.loads, (job.folder / "steps.jsonl").read_text().splitlines())]
        assert sum(loss[-3:]) < 0.9 * sum(loss[:3]), job.folder
        assert row["metric"] == case.metric
        assert row["skipped_steps"] == 0


def test_every_run_is_whole(trained):
    for job, row in zip(*trained, strict=True):
        summary = json.loads((job.folder / "summary.json").read_text())
        assert summary["value"] == row["value"] == summary["metrics"][row["metric"]]
        assert not (job.folder / "checkpoint").exists()
        baselines = json.loads((job.folder.parents[1] / "baselines.json").read_text())["baselines"]
        assert len(baselines) >= 2
        assert all(scores.keys() <= summary["metrics"].keys() for scores in baselines.values())
        flow = json.loads((job.folder.parents[1] / "flow.json").read_text())
        assert flow["stages"][0]["shape"][0] == 120
        assert summary["metrics"].keys() == SCORES[job.case]


def test_a_finished_run_is_not_run_again(trained, monkeypatch):
    jobs, rows = trained
    monkeypatch.setattr(factorial, "run_ranks", None)
    heard = []
    assert factorial.run_jobs(_jobs(_runs(jobs), _chosen(jobs)), 2, heard.append) == rows
    assert all(message.unchanged for message in heard)


def test_other_settings_or_other_code_are_another_run(trained, monkeypatch):
    jobs, _ = trained
    other = replace(jobs[0], settings=replace(jobs[0].settings, learning_rate=0.5))
    assert factorial._finished(jobs[0]) is not None
    assert factorial._finished(other) is None
    assert factorial._finished(replace(jobs[0], again=True)) is None
    monkeypatch.setattr(factorial, "digest", lambda settings: "of other code")
    assert factorial._finished(jobs[0]) is None


def test_predictions_can_be_looked_at(trained, capsys):
    runs = _runs(trained[0])
    for case, variant in _chosen(trained[0]):
        chosen = ["--variant", variant] if variant else []
        assert cli.run(["lab", case, "--show", "3", "--runs", str(runs), "--json", *chosen]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert len(rows) == 3
        assert all(row.keys() == {"given", "truth", "predicted"} and row["predicted"] for row in rows)
    assert cli.run(["lab", case, "--show", "2", "--runs", str(runs), *chosen]) == 0
    out = capsys.readouterr().out
    assert "predicted" in out
    assert all(name in out for name in SCORES[case])


def test_the_saved_model_is_the_trained_one(trained):
    job, row = trained[0][0], trained[1][0]
    assert has_model(job.folder)
    case = load_case(job.case, job.settings.variant)
    model = load_model(case.model(), job.folder)
    _, test = case.load()
    counts = [case.count(model, case.batch(test, part), test, part) for part in torch.arange(len(test)).split(250)]
    assert case.scores(torch.stack(counts).sum(0))[case.metric] == pytest.approx(row["value"], abs=1e-3)


def test_without_a_trained_model_the_command_is_named(tmp_path, capsys):
    assert cli.run(["lab", "series", "--show", "1", "--runs", str(tmp_path)]) == 2
    assert "tightgrad lab series" in capsys.readouterr().err


@pytest.mark.parametrize("case", CASES)
def test_variants_are_named_after_themselves(case):
    for variant in (*embedded_variants(case), *full_variants(case)):
        one = load_case(case, variant)
        assert one.id == case
        assert one.settings(full=variant in full_variants(case)).variant == variant


def _runs(jobs) -> Path:
    return next(parent.parent for parent in jobs[0].folder.parents if parent.name == jobs[0].case)


def _chosen(jobs):
    return [(job.case, job.settings.variant) for job in jobs]
