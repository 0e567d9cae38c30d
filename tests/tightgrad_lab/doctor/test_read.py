"""Records are read as they were written: by our writer, by TensorBoard, after a resume, in mid-write."""

import json
import re
from pathlib import Path

import pytest
import torch

import tightgrad as tg
from tightgrad_lab.cli import app as cli
from tightgrad_lab.doctor import examine, read_history
from tightgrad_lab.doctor.events import read_events
from tightgrad_lab.errors import ArgumentError

PLAN = tg.Plan(clip=tg.clip.GlobalNorm(1e-3))


def train(records: list[tg.records.RecordWriter], steps: int = 30, plan: tg.Plan = PLAN) -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(8, 1)
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), 0.1), plan, records=records)
    generator = torch.Generator().manual_seed(0)
    for window in pipe.windows([torch.randn(4, 8, generator=generator) for _ in range(steps)]):
        for batch in window:
            pipe.backward((net(batch) - 3).square().mean())
        pipe.step()
    pipe.close()


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_folder_of_ours(tmp_path: Path) -> None:
    train([tg.records.Jsonl(tmp_path)])
    history = read_history(tmp_path)
    assert history.plan == PLAN
    assert [record["step"] for record in history.steps] == list(range(30))
    assert [finding.problem for finding in examine(history)] == ["over_clipping"]
    assert read_history(tmp_path / "steps.jsonl") == history


def test_records_of_an_older_version_have_fields_that_are_gone(tmp_path: Path) -> None:
    train([tg.records.Jsonl(tmp_path)])
    path = tmp_path / "steps.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert not any("framing_bytes" in record for record in records)
    write(path, *({**record, "framing_bytes": 96} for record in records))
    assert [finding.problem for finding in examine(read_history(tmp_path))] == ["over_clipping"]


def test_a_folder_of_the_lab(tmp_path: Path) -> None:
    write(tmp_path / "steps.jsonl", {"step": 0, "skipped": False, "loss": None})
    write(tmp_path / "config.json", {"schema": 1, "plan": PLAN.to_config()})
    assert read_history(tmp_path).plan == PLAN


def test_what_a_resumed_run_has_done_again_counts_once(tmp_path: Path) -> None:
    steps = [{"step": step, "loss": "first"} for step in range(5)] + [
        {"step": step, "loss": "again"} for step in (3, 4)
    ]
    path = write(tmp_path / "steps.jsonl", *steps[:5], {"error": "RuntimeError", "message": "killed"}, *steps[5:])
    history = read_history(path)
    assert [record["loss"] for record in history.steps] == ["first"] * 3 + ["again"] * 2
    assert history.failure is None


def test_ranks_in_their_order(tmp_path: Path) -> None:
    for rank in (0, 10, 2):
        name = "steps.jsonl" if rank == 0 else f"steps.rank{rank}.jsonl"
        write(tmp_path / name, {"step": 0, "rank": rank})
    assert [records[0]["rank"] for records in read_history(tmp_path).ranks] == [0, 2, 10]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (None, "", "neither steps.jsonl"),
        ("steps.jsonl", "", "no records"),
        ("steps.jsonl", '{"step": 0}\nnonsense\n', "line 2"),
        ("steps.jsonl", '{"loss": 0}\n', "line 1"),
        ("events.out.tfevents.1", "x" * 40, "not|no scalars"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str | None, text: str, message: str) -> None:
    if name:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ArgumentError, match=message):
        read_history(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="there is no"):
        read_history(tmp_path / "nothing")


def test_event_files_of_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    train([tg.records.TensorBoard(tmp_path), tg.records.Jsonl(tmp_path / "jsonl")])
    history, exact = read_history(tmp_path / "jsonl"), None
    exact, history = history, read_history(next(tmp_path.glob("events.out.tfevents.*")))
    assert [record["step"] for record in history.steps] == [record["step"] for record in exact.steps]
    for field in ("loss", "grad_norm", "clip_coef", "parameter_norm"):
        assert history.series(field)[0] == exact.series(field)[0]
        assert history.series(field)[1] == pytest.approx(exact.series(field)[1], rel=1e-6)
    assert [finding.problem for finding in examine(history)] == ["over_clipping"]


def test_tags_of_other_tools(tmp_path: Path) -> None:
    module = pytest.importorskip("tensorboardX")
    with module.SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("note", "not a scalar", 0)
        for step in range(0, 40, 2):
            writer.add_scalar("train/grad_norm", 1.0 if step != 30 else 90.0, step)
            writer.add_scalar("train/loss", 2.0, step)
    history = read_history(tmp_path)
    assert history.series("loss") == (list(range(0, 40, 2)), [2.0] * 20)
    (finding,) = examine(history)
    assert (finding.problem, finding.step) == ("exploding_norms", 30)


def test_an_event_file_that_is_still_written(tmp_path: Path) -> None:
    module = pytest.importorskip("tensorboardX")
    with module.SummaryWriter(str(tmp_path)) as writer:
        for step in range(5):
            writer.add_scalar("loss", float(step), step)
    (path,) = tmp_path.glob("events.*")
    path.write_bytes(path.read_bytes()[:-5])
    assert [step for step, _, _ in read_events(path)] == [0, 1, 2, 3]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train([tg.records.Jsonl(tmp_path / "bad")])
    train([tg.records.Jsonl(tmp_path / "good")], plan=tg.Plan(clip=tg.clip.GlobalNorm(3.0)))
    assert cli.run(["doctor", str(tmp_path / "bad"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [row["problem"] for row in found["rows"]] == ["over_clipping"]
    assert {"problem", "evidence", "cure", "step"} <= set(found["rows"][0])
    assert cli.run(["doctor", str(tmp_path / "good"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert cli.run(["doctor", str(tmp_path / "bad")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "wrong over clipping, from step 0" in said
    assert said.endswith(": 1 problem in 30 steps.")
    pasted = eval(re.search(r"plan: (clip=.*\)) ", said)[1].removeprefix("clip="), {"tg": tg})  # type: ignore[index]
    assert tg.Plan.from_config(found["rows"][0]["plan"]).clip == pasted
    assert cli.run(["doctor", str(tmp_path / "good")]) == 0
    assert capsys.readouterr().out.startswith("ok ")
    lines = [f"step {step} | loss 2.0 | grad_norm 2.0 | clip_coef 0.5" for step in range(30)]
    (tmp_path / "steady.txt").write_text("\n".join(lines))
    assert cli.run(["doctor", str(tmp_path / "steady.txt"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["rows"], [row["problem"] for row in found["notes"]]) == (True, [], ["steady_clipping"])
    assert cli.run(["doctor", str(tmp_path / "steady.txt")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("ok ")
    assert "note steady clipping, from step 0 100% of 30 steps were clipped, to 0.5 of the gradient" in said
    assert cli.run(["doctor", str(tmp_path / "nothing")]) == 2
    assert "there is no" in capsys.readouterr().err
