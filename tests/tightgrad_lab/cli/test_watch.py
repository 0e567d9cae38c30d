"""`tightgrad watch` shows the newest whole record of each rank, whatever state the files are in."""

import json
from pathlib import Path

import pytest
import torch

import tightgrad as tg
from tightgrad.collectives import run_threaded
from tightgrad_lab.cli.app import run
from tightgrad_lab.cli.watch import newest, table
from tightgrad_lab.errors import ArgumentError


def cells(folder: Path, now: float = 0.0) -> dict[str, list[str]]:
    return {str(column.header): [str(cell) for cell in column.cells] for column in table(folder, now).columns}


def trained(folder: Path, ranks: int) -> None:
    def body(collective: tg.collectives.ThreadedCollective) -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4)
        plan = tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.5), feedback=tg.ErrorFeedback()))
        records = [tg.records.Jsonl(folder)]
        pipe = tg.attach(
            model, torch.optim.SGD(model.parameters(), lr=0.1), plan, collective=collective, records=records
        )
        for window in pipe.windows(torch.randn(3, 4, 8)):
            for batch in window:
                pipe.backward(model(batch).square().mean())
            pipe.step()
        pipe.close()

    run_threaded(ranks, body)


def test_every_rank_has_its_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path, 3)
    shown = cells(tmp_path, now=(tmp_path / "steps.jsonl").stat().st_mtime + 7)
    assert shown["rank"] == ["0", "1", "2"]
    assert shown["step"] == ["2"] * 3
    assert shown["silent"][0] == "7 s"
    assert len(set(shown["norm"])) == 1, "the delivered gradient is the same"
    assert all(cell.endswith(" B") for cell in shown["sent"])
    assert "-" not in shown["residual"]
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["watch", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "silent" in printed
    assert "…" not in printed.split("stages")[1], "nothing is cut off in 80 columns"


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text('{"step": 4, "loss": 0.25}\n{"step": 5, "lo')
    assert cells(tmp_path)["loss"] == ["0.25"]
    file.write_text("")
    assert cells(tmp_path)["step"] == ["-"]
    file.write_text("".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(20_000)))
    assert newest(file)["step"] == 19_999


def test_skipped_steps_errors_and_what_was_not_measured(tmp_path: Path) -> None:
    skipped = {"step": 3, "skipped": True, "skip_reason": "nonfinite", "grad_norm": None}
    other = {"step": 3, "loss": 2.0, "stage_seconds": {"clip": 0.5, "guard": 1.0}}
    failed = {"error": "CommunicationError", "message": "x"}
    for name, record in (("steps", skipped), ("steps.rank2", other), ("steps.rank10", failed)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    shown = cells(tmp_path)
    assert shown["rank"] == ["0", "2", "10"]
    assert shown["step"] == ["3 (nonfinite)", "3", "CommunicationError"]
    assert shown["norm"] == ["-", "-", "-"]
    assert shown["stages"] == ["-", "1.5 s", "-"]


@pytest.mark.parametrize("text", [None, "no json\n"])
def test_what_cannot_be_shown_is_an_error_that_says_what_to_do(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "steps.jsonl").write_text(text)
    with pytest.raises(ArgumentError, match=r"records=\[tg.records.Jsonl" if text is None else "not a step record"):
        table(tmp_path, 0.0)
