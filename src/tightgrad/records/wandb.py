"""Weights & Biases."""

from importlib import import_module
from typing import Any

from tightgrad.core.errors import UnsupportedError
from tightgrad.records.writer import Record, RecordWriter, scalars


class WandB(RecordWriter):
    """Logs scalars named `tightgrad/<field>` from rank 0, and the plan as the run's configuration. Needs wandb.

    Args:
        options: arguments of `wandb.init`, such as project="gradients"; without any, a run that is already open is
            used.

    Raises:
        UnsupportedError: wandb is not installed.
    """

    def __init__(self, **options: Any) -> None:
        try:
            self._wandb: Any = import_module("wandb")
        except ImportError:
            raise UnsupportedError("WandB needs the package wandb: pip install wandb.") from None
        self._options = options
        self._run: Any = None
        self._owned = self._failed = False

    def start(self, rank: int, ranks: int, plan: Record) -> None:
        """Open the run on rank 0, or take the one that is open."""
        if rank != 0:
            return
        self._owned = bool(self._options) or self._wandb.run is None
        self._run = self._wandb.init(**self._options) if self._owned else self._wandb.run
        self._run.config.update({"tightgrad": {"plan": dict(plan), "ranks": ranks}})

    def write(self, record: Record) -> None:
        """Log the record's finite numbers."""
        self._failed = False  # a loop that goes on has mended what failed
        if self._run is not None:
            self._run.log({**dict(scalars(record)), "tightgrad/step": record["step"]})

    def failed(self, error: BaseException) -> None:
        """Let the run finish as failed, unless another step is written."""
        self._failed = True

    def close(self) -> None:
        """Finish the run if it was opened here, as failed where an error came last."""
        if self._run is not None and self._owned:
            self._run.finish(exit_code=int(self._failed))
        self._run = None
