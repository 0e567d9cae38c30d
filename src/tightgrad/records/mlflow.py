"""MLflow."""

from importlib import import_module
from typing import Any

from tightgrad.core.errors import UnsupportedError
from tightgrad.records.writer import Record, RecordWriter, scalars


class MLflow(RecordWriter):
    """Logs metrics named `tightgrad/<field>` from rank 0, and the plan as the artifact `tightgrad/plan.json`. Needs
    mlflow.

    Args:
        options: arguments of `mlflow.start_run`, such as run_name="compressed"; without any, the run that is active is
            used, or a new one. The tracking server and the experiment are those that MLflow was told.

    Raises:
        UnsupportedError: mlflow is not installed.
    """

    def __init__(self, **options: Any) -> None:
        try:
            self._mlflow: Any = import_module("mlflow")
        except ImportError:
            raise UnsupportedError("MLflow needs the package mlflow: pip install mlflow.") from None
        self._options = options
        self._run_id: str | None = None
        self._owned = self._failed = False

    def start(self, rank: int, ranks: int, plan: Record) -> None:
        """Start the run on rank 0, or take the one that is active."""
        if rank != 0:
            return
        active = self._mlflow.active_run()
        self._owned = bool(self._options) or active is None
        run = self._mlflow.start_run(**self._options) if self._owned else active
        self._run_id = run.info.run_id
        self._mlflow.set_tag("tightgrad/ranks", ranks)  # a parameter could not change when the run is resumed
        self._mlflow.log_dict(dict(plan), "tightgrad/plan.json")

    def write(self, record: Record) -> None:
        """Log the record's finite numbers at its step."""
        self._failed = False  # a loop that goes on has mended what failed
        if self._run_id is not None:
            self._mlflow.log_metrics(dict(scalars(record)), step=record["step"], run_id=self._run_id)

    def failed(self, error: BaseException) -> None:
        """Let the run end as failed, unless another step is written."""
        self._failed = True

    def close(self) -> None:
        """End the run if it was started here, as failed where an error came last."""
        if self._run_id is not None and self._owned:
            self._mlflow.end_run("FAILED" if self._failed else "FINISHED")
        self._run_id = None
