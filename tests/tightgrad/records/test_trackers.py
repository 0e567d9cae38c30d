"""Experiment trackers get every step, the plan, and charts; a run that was open stays open."""

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import tightgrad as tg
from tightgrad.records.tensorboard import LAYOUT
from tightgrad.records.writer import scalars
from tightgrad_lab.doctor.read import read_history

PLAN = tg.Plan(
    accumulate=tg.Accumulate(micro_batches=2),
    compress=tg.Compress(tg.codecs.TopK(0.25), feedback=tg.ErrorFeedback()),
    clip=tg.clip.GlobalNorm(0.1),
)


def train(writer: tg.records.RecordWriter, plan: tg.Plan = PLAN) -> tuple[tg.GradientPipeline, list[tg.StepRecord]]:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan, records=[writer])
    records = []
    for window in pipe.windows([torch.randn(3, 8) for _ in range(6)]):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        records.append(pipe.step())
    return pipe, records


class FakeMLflow(types.SimpleNamespace):
    """Records the calls of mlflow's documented functions that the writer makes."""

    def __init__(self, active: str | None) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.active = active

    def __getattr__(self, name: str) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            if name == "active_run":
                return None if self.active is None else self._run(self.active)
            self.calls.append((name, args, kwargs))
            return self._run("new") if name == "start_run" else None

        return called

    @staticmethod
    def _run(run_id: str) -> Any:
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.mark.parametrize(
    ("active", "options", "run_id", "is_owned"),
    [
        (None, {}, "new", True),
        ("theirs", {}, "theirs", False),
        ("theirs", {"run_name": "mine", "nested": True}, "new", True),
    ],
)
def test_mlflow_is_called_as_documented(
    active: str | None, options: dict[str, Any], run_id: str, is_owned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMLflow(active)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    pipe, records = train(tg.records.MLflow(**options))
    pipe.close()
    pipe.close()
    assert fake.of("start_run") == ([((), options)] if is_owned else [])
    assert fake.of("end_run") == ([(("FINISHED",), {})] if is_owned else [])
    assert fake.of("log_dict") == [((PLAN.to_config(), "tightgrad/plan.json"), {})]
    assert fake.of("log_metrics") == [
        ((dict(scalars(record.to_dict())),), {"step": record.step, "run_id": run_id}) for record in records
    ]


@pytest.mark.parametrize(("goes_on", "status"), [(False, "FAILED"), (True, "FINISHED")])
def test_a_run_that_an_error_ends_is_failed(goes_on: bool, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMLflow(None)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    finished: list[int] = []
    run = types.SimpleNamespace(config={}, log=lambda record: None, finish=lambda exit_code: finished.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(run=None, init=lambda **options: run))
    for writer in (tg.records.MLflow(), tg.records.WandB()):
        writer.start(0, 1, {})
        writer.write({"step": 0, "loss": 1.0})
        writer.failed(RuntimeError("a step"))
        if goes_on:
            writer.write({"step": 1, "loss": 1.0})
        else:
            with pytest.raises(ValueError, match="planted"), writer:
                raise ValueError("planted")
        writer.close()
    assert fake.of("end_run") == [((status,), {})]
    assert finished == [status == "FAILED"]


def test_other_ranks_say_nothing_to_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMLflow(None)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    writer = tg.records.MLflow()
    writer.start(1, 2, {})
    writer.write({"step": 0, "loss": 1.0})
    writer.close()
    assert fake.calls == []


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_a_run_in_a_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    pipe, records = train(tg.records.MLflow(run_name="compressed"))
    run_id = mlflow.active_run().info.run_id
    pipe.close()
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    history = client.get_metric_history(run_id, "tightgrad/grad_norm")
    assert [(point.step, point.value) for point in history] == [(record.step, record.grad_norm) for record in records]
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["tightgrad/ranks"]) == ("FINISHED", "1")
    kept = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="tightgrad/plan.json")
    assert tg.Plan.from_config(json.loads(Path(kept).read_text())) == PLAN


def test_the_charts_of_tensorboard_hold_every_number_that_changes() -> None:
    record = {
        **tg.StepRecord(0, False, None, 1.0, 1.0, 1, 1.0, 1.0, 1).to_dict(),
        "stage_seconds": {"clip": 1.0},
        "group_norms": {"0": 1.0},
        "group_clip_coefs": {"0": 1.0},
    }
    names = {name for name, _ in scalars({key: 1.0 if value is None else value for key, value in record.items()})}
    charts = [tags for charts in LAYOUT.values() for _, tags in charts.values()]
    shown = {name for name in names for tags in charts for tag in tags if re.fullmatch(tag, name)}
    assert names - shown == {f"tightgrad/{name}" for name in ("micro_batches", "loss_scale", "skip_reason")}
    assert all(any(re.fullmatch(tag, name) for name in names) for tags in charts for tag in tags), "no empty chart"


def test_tensorboard_gets_the_charts_and_doctor_still_reads_the_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    pipe, records = train(tg.records.TensorBoard(tmp_path))
    pipe.close()
    history = read_history(tmp_path)
    assert [record["grad_norm"] for record in history.steps] == pytest.approx([r.grad_norm for r in records])
    (file,) = tmp_path.glob("events.out.tfevents.*")
    assert b"custom_scalars__config__" in file.read_bytes()
    assert all("custom_scalars" not in key for record in history.steps for key in record)


def test_tensorboard_itself_reads_the_charts(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    layouts = pytest.importorskip("tensorboard.plugins.custom_scalar.layout_pb2")
    pipe, _ = train(tg.records.TensorBoard(tmp_path))
    pipe.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert "tightgrad/grad_norm" in events.Tags()["scalars"]
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layouts.Layout.FromString(event.tensor_proto.string_val[0])
    assert [chart.title for chart in layout.category[0].chart] == list(LAYOUT["tightgrad"])
