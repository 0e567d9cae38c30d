"""The audit names the cause of every planted bug, and reports nothing on correct loops."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import tightgrad_lab.audit
from support.waiting import patience
from tightgrad_lab.audit.run import RANKS, Audit, audit_files
from tightgrad_lab.cli import app as cli
from tightgrad_lab.cli.audit import Template

ROOT = Path(__file__).parents[3]
CORPUS = ROOT / "examples" / "audit"
TEMPLATES = Path(tightgrad_lab.audit.__file__).parent / "templates"
CAUSES = {
    "accelerate_clip": "clip in mid-window",
    "accelerate_partial": r"0\.60x on the last window: divided by the full K",
    "all_masked": "a micro-batch has no target that counts",
    "bare_model": "ranks differ: no sync",
    "bfloat16_sums": "gradients are added up in bfloat16",
    "clip_after_step": "clipping does nothing",
    "clip_always": "scaled to the bound also where it is shorter",
    "clip_before_unscale": "clip ran before unscale",
    "clip_each_group": "clipped in 2 groups, each by its own norm",
    "clip_each_parameter": "each parameter is clipped by its own norm",
    "clip_each_rank": "clip ran before gradients were averaged over ranks",
    "clip_in_mid_window": "clip in mid-window",
    "clip_part": r"only part of the parameters are clipped \(not embedding.weight",
    "clip_shard_norm": "each rank clips by the norm of its own shard",
    "clip_sum_of_norms": "the norms of the tensors are added up, not their squares",
    "contrastive": "not the weighted mean of its halves' losses",
    "detached_part": "embedding.weight: no gradient reaches the optimizer",
    "divided_by_all_ranks": r"0\.50x = 1 / data-parallel size",
    "divided_twice": r"0\.20x = 1 / accumulation steps: divided by the number of micro-batches twice",
    "epoch_carried": "windows go on across the border of two epochs",
    "epoch_leak": "micro-batches of the epoch before enter the first window of the next",
    "frozen_module": "set on the module, which freezes nothing",
    "frozen_stale": r"0\.bias, 0\.weight: frozen, and changed all the same",
    "frozen_trains": r"0\.bias, 0\.weight: frozen, and changed all the same",
    "last_synced": "ranks differ: only the last micro-batch's gradient is summed over ranks",
    "last_window_lost": "the last window is never applied",
    "lightning_partial": r"0\.60x on the last window: divided by the full K",
    "mean_of_means": "mean of micro-batch means",
    "never_averaged": r"2\.00x = data-parallel size: .*summed over ranks, and not averaged",
    "never_unscaled": "1024x: the loss scale is still in the gradient",
    "no_optimizer": r"head\.weight, head\.bias: no optimizer holds these parameters",
    "no_sync": "ranks differ: no sync",
    "not_divided": r"5\.00x = accumulation steps: the loss is not divided",
    "off_by_one": "the step is taken one micro-batch off",
    "partial_window": r"0\.60x on the last window: divided by the full K",
    "rank_means": "mean of rank means",
    "step_every_micro_batch": "the optimizer steps after every micro-batch",
    "sum_of_losses": "the sum of the losses is not divided by its weight",
    "tied_clipped_twice": "a tied weight is clipped twice",
    "trainer_num_items": "mean of micro-batch means",
    "unscaled_twice": "the gradient is unscaled twice",
    "world_size": r"2\.00x = data-parallel size: the loss is a local mean but is multiplied by the world size",
    "zero_grad_inside": "only the last micro-batch counts: gradients are cleared",
    "zero_grad_missing": "gradients of the window before are still there: zero_grad is missing",
}
"""What must be named for examples/audit/bug_<key>.py."""
NEEDS = {"accelerate": "accelerate", "trainer": "transformers", "lightning": "lightning"}
QUICK = ("clip_in_mid_window", "mean_of_means", "no_sync", "partial_window")
QUICK_CORRECT = ("correct_averages_inside", "correct_raw_ddp", "correct_tied")
ALONE = ("all_masked", "contrastive", "epoch_leak", "frozen_stale", "no_optimizer", "unscaled_twice")
ALONE_CORRECT = ("ema", "functional_dropout", "gan", "lbfgs", "optimizer_in_backward", "sam", "tbptt", "two_optimizers")


def can_run(path: Path) -> bool:
    """Whether the framework that the file imports is installed."""
    return all(find_spec(module) for word, module in NEEDS.items() if word in path.stem.split("_"))


def check_bug(path: Path, found: Audit) -> None:
    causes = [finding.cause for finding in found.findings]
    assert len(causes) == 1, (path.name, causes)
    assert re.search(CAUSES[path.stem.removeprefix("bug_")], causes[0]), (path.name, causes)
    assert "Cure: " in found.findings[0].detail


def check_correct(path: Path, found: Audit) -> None:
    assert found.ok, (path.name, [finding.cause for finding in found.findings])
    assert found.steps > 10


def test_the_corpus_is_as_large_as_promised() -> None:
    assert {path.stem.removeprefix("bug_") for path in CORPUS.glob("bug_*.py")} == CAUSES.keys()
    assert len(CAUSES) >= 44
    assert len(list(CORPUS.glob("correct_*.py"))) >= 20


def test_two_ranks_name_some_bugs() -> None:
    bugs = [CORPUS / f"bug_{name}.py" for name in QUICK]
    correct = [CORPUS / f"{name}.py" for name in QUICK_CORRECT]
    found = audit_files([*bugs, *correct], ranks=(2,))
    for path in bugs:
        check_bug(path, found[path])
    for path in correct:
        check_correct(path, found[path])


def test_one_rank_names_what_needs_no_other_and_accuses_no_unusual_loop() -> None:
    bugs = [CORPUS / f"bug_{name}.py" for name in ALONE]
    correct = [CORPUS / f"correct_{name}.py" for name in ALONE_CORRECT]
    found = audit_files([*bugs, *correct], ranks=(1,))
    for path in bugs:
        check_bug(path, found[path])
    for path in correct:
        assert found[path].ok, (path.name, [finding.cause for finding in found[path].findings])


def test_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    bug = str(CORPUS / "bug_not_divided.py")
    assert cli.run(["audit", bug, "--ranks", "1", "--json"]) == 1
    printed = json.loads(capfd.readouterr().out)
    assert printed["ok"] is False
    assert [set(row) for row in printed["rows"]] == [{"cause", "where", "gain", "cosine", "detail"}]
    assert printed["rows"][0]["gain"] == pytest.approx(5.0)
    assert printed["rows"][0]["cosine"] == pytest.approx(1.0)
    assert printed["rows"][0]["where"] == "1 rank, equal weights: window 1, rank 0"


@pytest.mark.parametrize("template", Template)
def test_templates_are_printed(template: Template, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["audit", "--template", template]) == 0
    assert capsys.readouterr().out == (TEMPLATES / f"{template}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file"),
        ("import nothing_of_the_kind", "cannot be imported: ModuleNotFoundError"),
        ("def train(model, batches): ...", "does not define build_model, make_batches, loss"),
        (
            "build_model = make_batches = loss = train = print\nPRECISION = 'float8'",
            "use one of float32, bfloat16, float16",
        ),
    ],
)
def test_a_file_that_cannot_be_audited(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert cli.run(["audit", str(path)]) == 2
    err = capsys.readouterr().err
    assert message in err.replace("\n", " ")


def test_under_torchrun_it_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert cli.run(["audit", str(CORPUS / "correct_tied.py")]) == 2
    assert "leave torchrun out" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(patience(1200))
def test_every_file_under_one_two_and_four_ranks() -> None:
    bugs = [path for path in sorted(CORPUS.glob("bug_*.py")) if can_run(path)]
    correct = [path for path in sorted(CORPUS.glob("correct_*.py")) if can_run(path)]
    correct += [path for path in sorted(TEMPLATES.glob("*.py")) if can_run(path)]
    found = audit_files([*bugs, *correct], RANKS)
    for path in bugs:
        check_bug(path, found[path])
    for path in correct:
        check_correct(path, found[path])
