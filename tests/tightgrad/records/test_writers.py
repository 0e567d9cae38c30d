"""Step records reach files, trackers and the terminal as they were measured."""

import io
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import tightgrad as tg
from support.programs import run_program
from tightgrad.collectives import run_threaded
from tightgrad.core.protocols import Collective
from tightgrad.records.terminal import line_of, nbytes_text
from tightgrad.records.writer import scalars

PLAN = tg.Plan(
    accumulate=tg.Accumulate(micro_batches=2),
    compress=tg.Compress(tg.codecs.TopK(0.25), feedback=tg.ErrorFeedback()),
    clip=tg.clip.GlobalNorm(0.1),
    guard=tg.Guard("skip"),
)


def batches(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1 + i % 3, 8, generator=generator) for i in range(count)]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def train(
    records: list[tg.records.RecordWriter], count: int = 24, plan: tg.Plan = PLAN, **more: object
) -> tg.GradientPipeline:
    net = model()
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), 0.1), plan, records=records, **more)
    run(pipe, net, batches(count))
    return pipe


def run(pipe: tg.GradientPipeline, net: nn.Module, loader: list[torch.Tensor]) -> list[tg.StepRecord]:
    found = []
    for window in pipe.windows(loader):
        for batch in window:
            pipe.backward(net(batch).square().mean())
        found.append(pipe.step())
    return found


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_jsonl_holds_every_record(tmp_path: Path) -> None:
    net = model()
    with tg.records.Jsonl(tmp_path) as jsonl:
        pipe = tg.attach(net, torch.optim.SGD(net.parameters(), 0.1), PLAN, records=[jsonl])
        found = run(pipe, net, batches(24))
        assert lines(tmp_path / "steps.jsonl") == json.loads(json.dumps([record.to_dict() for record in found]))
    assert tg.Plan.from_json((tmp_path / "plan.json").read_text()) == PLAN
    assert len(found) == 12


def test_what_a_record_measures(tmp_path: Path) -> None:
    net = model()
    plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=2), clip=tg.clip.GlobalNorm(1e9))
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), 0.0), plan)
    loader = batches(24)
    records = run(pipe, net, loader)
    for place, record in enumerate(records):
        samples = torch.cat(loader[2 * place : 2 * place + 2])
        assert record.loss == pytest.approx(net(samples).square().mean().item(), rel=1e-5)
        assert record.memory_bytes is None or 50e6 < record.memory_bytes < 50e9
        assert record.compression_cosine is None
        norm = math.sqrt(sum(p.square().sum().item() for p in net.parameters()))
        assert record.parameter_norm == (pytest.approx(norm, rel=1e-6) if place % 10 == 0 else None)


def test_the_cosine_is_that_of_what_was_sent() -> None:
    net = model()
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), 0.1), tg.Plan(compress=tg.Compress(tg.codecs.TopK(0.25))))
    (batch,) = batches(1)
    grads = torch.autograd.grad(net(batch).square().mean(), list(net.parameters()))
    (record,) = run(pipe, net, [batch])
    delivered = [tg.codecs.TopK(0.25) for _ in grads]
    from tightgrad.core.types import GradSpec

    sent = torch.cat(
        [
            codec.decode(codec.encode(grad.flatten(), GradSpec.of("x", grad.flatten()), torch.Generator()))
            for codec, grad in zip(delivered, grads, strict=True)
        ]
    )
    given = torch.cat([grad.flatten() for grad in grads])
    assert record.compression_cosine == pytest.approx(float(torch.cosine_similarity(given, sent, dim=0)), rel=1e-5)


def test_a_resumed_run_goes_on_and_a_new_one_begins_anew(tmp_path: Path) -> None:
    pipe = train([tg.records.Jsonl(tmp_path)])
    state = pipe.state_dict()
    net = model()
    resumed = tg.attach(net, torch.optim.SGD(net.parameters(), 0.1), PLAN, records=[tg.records.Jsonl(tmp_path)])
    resumed.load_state_dict(state)
    run(resumed, net, batches(4))
    assert [line["step"] for line in lines(tmp_path / "steps.jsonl")] == [*range(12), 12, 13]
    train([tg.records.Jsonl(tmp_path)], count=2)
    assert [line["step"] for line in lines(tmp_path / "steps.jsonl")] == [0]


def test_errors_are_the_last_line_once(tmp_path: Path) -> None:
    net = model()
    plan = tg.Plan(clip=tg.clip.GlobalNorm(1.0))
    jsonl = tg.records.Jsonl(tmp_path)
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), 0.1), plan, records=[jsonl])
    with pytest.raises(tg.NonFiniteGradientError), jsonl:
        run(pipe, net, [*batches(3), torch.full((2, 8), torch.nan)])
    *steps, last = lines(tmp_path / "steps.jsonl")
    assert len(steps) == 3
    assert last["error"] == "NonFiniteGradientError"
    assert last["out_of_memory"] is False


def test_an_error_of_the_loop_itself_is_told(tmp_path: Path) -> None:
    jsonl = tg.records.Jsonl(tmp_path)
    train([jsonl], count=4)
    with pytest.raises(RuntimeError), jsonl:
        torch.empty(2**50)
    last = lines(tmp_path / "steps.jsonl")[-1]
    assert last["error"] == "RuntimeError"
    assert last["out_of_memory"] is True


def test_nonfinite_numbers_are_null(tmp_path: Path) -> None:
    plan = tg.Plan(clip=tg.clip.GlobalNorm(1.0), guard=tg.Guard("propagate"))
    net = model()
    pipe = tg.attach(net, torch.optim.SGD(net.parameters(), 0.1), plan, records=[tg.records.Jsonl(tmp_path)])
    run(pipe, net, [torch.full((2, 8), torch.nan)])
    assert lines(tmp_path / "steps.jsonl")[0]["grad_norm"] is None


def test_each_rank_has_its_file_and_the_delivered_gradient_is_the_same(tmp_path: Path) -> None:
    def body(collective: Collective) -> None:
        net = nn.Linear(8, 1)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(0.1)
        writer = tg.records.Jsonl(tmp_path)
        terminal = tg.records.Terminal(streams[collective.rank])
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        pipe = tg.attach(net, optimizer, PLAN, collective=collective, records=[writer, terminal])
        run(pipe, net, batches(8, seed=collective.rank))
        pipe.close()

    streams = [io.StringIO(), io.StringIO()]
    run_threaded(2, body)
    first, second = (lines(tmp_path / name) for name in ("steps.jsonl", "steps.rank1.jsonl"))
    assert [line["grad_norm"] for line in first] == [line["grad_norm"] for line in second]
    assert [line["loss"] for line in first] != [line["loss"] for line in second]
    assert first[0]["parameter_norm"] == second[0]["parameter_norm"]
    assert [bool(stream.getvalue()) for stream in streams] == [True, False]


def test_an_empty_plan_measures_what_costs_nothing(tmp_path: Path) -> None:
    train([tg.records.Jsonl(tmp_path)], plan=tg.Plan())
    first = lines(tmp_path / "steps.jsonl")[0]
    assert [first[key] for key in ("loss", "grad_norm", "parameter_norm")] == [None, None, None]
    assert first["memory_bytes"] is None or first["memory_bytes"] > 0


def test_numbers_by_name() -> None:
    record = {
        "step": 3,
        "skipped": False,
        "grad_norm": math.inf,
        "loss": 2.0,
        "skip_reason": None,
        "stage_seconds": {"clip": 0.5},
    }
    assert dict(scalars(record)) == {
        "tightgrad/skipped": 0.0,
        "tightgrad/loss": 2.0,
        "tightgrad/stage_seconds/clip": 0.5,
    }


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_terminal_overwrites_its_line() -> None:
    times = iter([0.0, 0.05, 0.5, 1.0])
    stream = Tty()
    terminal = tg.records.Terminal(stream, clock=lambda: next(times))
    for step, loss in enumerate((2.0, 1.5, 1.0)):
        terminal.write({"step": step, "loss": loss, "skipped": False})
    terminal.close()
    shown = stream.getvalue()
    assert [part.strip() for part in shown.split("\r")] == [
        "",
        "step 0  loss 2",
        "step 2  loss 1  4 steps/s",
        "step 2  loss 1  2 steps/s",
    ]
    assert shown.endswith("\n")


def test_progress_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = train([], progress=True)
    pipe.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("step 11  loss ")
    assert "clipped to" in err
    assert "steps/s" in err


def test_a_line_leaves_out_what_was_not_measured() -> None:
    assert line_of({"step": 1, "skipped": False}, None, 0) == "step 1"
    full = line_of(
        {"step": 7, "grad_norm": 2.0, "clip_coef": 0.5, "clip_rate": 0.25, "wire_bytes": 1234567, "memory_bytes": None},
        None,
        2,
    )
    assert full == "step 7  norm 2  clipped to 0.5 (25% of steps)  sent 1.23 MB  skipped 2"
    assert nbytes_text(999) == "999 B"


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = tg.records.WandB(project="gradients", dir=str(tmp_path))
    pipe = train([writer])
    assert dict(writer._run.summary)["tightgrad/step"] == 11
    assert tg.Plan.from_config(dict(writer._run.config)["tightgrad"]["plan"]) == PLAN
    pipe.close()
    assert list(tmp_path.glob("wandb/*/*.wandb"))


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['tensorboardX', 'torch.utils.tensorboard', 'wandb', 'mlflow']))\n"
        "import tightgrad as tg\n"
        "for make in (lambda: tg.records.TensorBoard('x'), tg.records.WandB, tg.records.MLflow):\n"
        "    try: make()\n"
        "    except tg.UnsupportedError as error: print(error)\n"
    )
    done = run_program(code, tmp_path, os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "TensorBoard needs a package that writes its files: pip install tensorboardX.",
        "WandB needs the package wandb: pip install wandb.",
        "MLflow needs the package mlflow: pip install mlflow.",
    ]
