"""Logs that other tools write are read: text, CSV, JSON and JSON lines, with their names for loss and norm."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tightgrad_lab.cli import app as cli
from tightgrad_lab.doctor import examine, read_history
from tightgrad_lab.errors import ArgumentError

STEPS, SPIKE = 40, 30
Line = Callable[[int, float, float], str]


def norm_at(step: int) -> float:
    return 90.0 if step == SPIKE else 1.0 + step % 3 / 10


LINES: dict[str, tuple[str, str, Line]] = {
    "nanogpt": ("train.log", "", lambda s, loss, norm: f"iter {s}: loss {loss:.4f}, time 12.1ms, mfu 3%, norm {norm}"),
    "table": ("train.txt", "", lambda s, loss, norm: f"step {s:5d} | loss: {loss} | lr 3.0e-4 | norm: {norm:.4f}"),
    "logger": ("o.out", "", lambda s, loss, n: f"2024-05-01 12:00:01 INFO Epoch 1 step={s} loss={loss} grad_norm={n}"),
    "trainer": ("run.log", "", lambda s, loss, n: f"{{'loss': {loss}, 'grad_norm': {n}, 'learning_rate': 5e-05}}"),
    "fairseq": (
        "f.log",
        "",
        lambda s, loss, n: f'| INFO | {{"num_updates": "{s}", "loss": "{loss}", "gnorm": "{n}"}}',
    ),
    "lightning": (
        "metrics.csv",
        "epoch,grad_norm,step,train_loss,val_loss\n0,,0,,9.1",
        lambda s, loss, norm: f"0,{norm},{s},,\n0,,{s},{loss},",
    ),
    "lines": (
        "m.jsonl",
        "",
        lambda s, x, n: json.dumps({"global_step": s, "train/loss": x, "train/grad_norm": n}),
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_a_spike_is_found_in_the_log_of_any_tool(name: str, tmp_path: Path) -> None:
    file, head, line = LINES[name]
    lines = [line(step, 2.5, norm_at(step)) for step in range(STEPS)]
    (tmp_path / file).write_text("\n".join([head, "validation loss 99.0", *lines]).strip(), encoding="utf-8")
    for path in (tmp_path / file, tmp_path):
        history = read_history(path)
        assert history.series("loss")[1] == [2.5] * STEPS
        (finding,) = examine(history)
        assert (finding.problem, finding.step) == ("exploding_norms", SPIKE)
        assert "nothing says that it was clipped" in finding.evidence


def test_the_state_of_a_trainer(tmp_path: Path) -> None:
    rows = [{"step": 10 * s, "epoch": 0.1, "loss": 2.0, "grad_norm": norm_at(s)} for s in range(STEPS)]
    folder = tmp_path / "checkpoint-40"
    folder.mkdir()
    state = {"log_history": [*rows, {"step": 400, "eval_loss": 9.0}, {"step": 400, "train_runtime": 3.0}]}
    (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    (finding,) = examine(read_history(tmp_path))
    assert (finding.problem, finding.step) == ("exploding_norms", 10 * SPIKE)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("step {s} loss nan", "exploding_norms"),
        ("{{'loss': 0.0, 'grad_norm': nan, 'learning_rate': 1e-5}}", "exploding_norms"),
        ("step {s} loss nan grad_norm 1.5", "all_masked"),
        ("step {s} loss 2.0 clip_coef 0.01 grad_norm 100.0", "over_clipping"),
        ("step {s} loss 2.0 mem_mb {mem}", "graph_kept_alive"),
    ],
)
def test_faults_in_text(line: str, problem: str, tmp_path: Path) -> None:
    text = "\n".join(line.format(s=step, mem=1000 + 20 * step) for step in range(60))
    (tmp_path / "run.log").write_text(text, encoding="utf-8")
    assert problem in [finding.problem for finding in examine(read_history(tmp_path))]


def test_steps_that_begin_again_in_each_epoch_are_numbered(tmp_path: Path) -> None:
    lines = [f"Epoch {epoch} [{step}/20] step: {step} loss: 1.5" for epoch in range(3) for step in range(20)]
    (tmp_path / "a.log").write_text("\n".join(lines), encoding="utf-8")
    assert [record["step"] for record in read_history(tmp_path).steps] == list(range(60))


def test_what_was_not_logged_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("step,loss\n" + "".join(f"{s},2.0\n" for s in range(30)), encoding="utf-8")
    assert cli.run(["doctor", str(tmp_path / "a.csv")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Not logged, and so not judged: grad_norm, clip_coef, memory_bytes." in said


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.csv", "epoch,accuracy\n1,0.5\n", "names no loss and no grad_norm, only epoch, accuracy"),
        ("a.log", "hello\n", "names no loss and no grad_norm; doctor reads"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "5", "names no loss and no grad_norm"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.csv", "loss\n" + "9" * 200_000 + "\n", "cannot be read"),
        ("a.csv", "step,epoch\n1,2,3\n", "names no loss and no grad_norm"),
        ("a.log", "{[]: 1}\n", "names no loss and no grad_norm"),
    ],
)
def test_a_log_without_numbers_of_training(file: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ArgumentError, match=message):
        read_history(tmp_path / file)


def test_values_that_are_no_numbers_are_passed_over(tmp_path: Path) -> None:
    others = f"'betas': (0.9, 0.95), 'name': b'run', 'seed': 1{'0' * 400}"
    lines = [f"{{'loss': 2.0, 'step': {step}, {others}}}" for step in range(30)]
    (tmp_path / "a.log").write_text("\n".join(lines), encoding="utf-8")
    assert examine(read_history(tmp_path / "a.log")) == []
