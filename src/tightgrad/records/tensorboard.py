"""TensorBoard event files."""

from importlib import import_module
from pathlib import Path
from typing import Any

from tightgrad.core.errors import UnsupportedError
from tightgrad.records.writer import Record, RecordWriter, scalars

MODULES = ("torch.utils.tensorboard", "tensorboardX")
"""Where a SummaryWriter may come from: the first that is installed."""
LAYOUT = {
    "tightgrad": {
        "loss": ["Multiline", ["tightgrad/loss"]],
        "norms": ["Multiline", ["tightgrad/(grad|residual|parameter)_norm", "tightgrad/group_norms/.*"]],
        "clipping": ["Multiline", ["tightgrad/clip_(coef|rate)", "tightgrad/group_clip_coefs/.*"]],
        "bytes sent": ["Multiline", ["tightgrad/wire_bytes"]],
        "what compression keeps": [
            "Multiline",
            ["tightgrad/(compression_cosine|relative_error|warm_start_overlap)"],
        ],
        "left out and repeated": ["Multiline", ["tightgrad/(skipped|retries|fell_back)"]],
        "seconds of stages": ["Multiline", ["tightgrad/stage_seconds/.*"]],
        "memory": ["Multiline", ["tightgrad/memory_bytes"]],
        "batch": ["Multiline", ["tightgrad/(weight|noise_scale)"]],
    }
}
"""Charts of the tab "Custom Scalars", each of the scalars whose names match."""


class TensorBoard(RecordWriter):
    """Writes scalars named `tightgrad/<field>`, from rank 0, and charts of them for the tab "Custom Scalars". Needs the
    package tensorboard or tensorboardX.

    Args:
        folder: where event files are written.

    Raises:
        UnsupportedError: neither package is installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = str(folder)
        self._make = _summary_writer()
        self._writer: Any = None

    def start(self, rank: int, ranks: int, plan: Record) -> None:
        """Open the event file on rank 0."""
        if rank == 0:
            self._writer = self._make(self._folder)
            self._writer.add_custom_scalars(LAYOUT)

    def write(self, record: Record) -> None:
        """Add the record's finite numbers as scalars."""
        if self._writer is None:
            return
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _summary_writer() -> Any:
    for name in MODULES:
        try:
            return import_module(name).SummaryWriter
        except ImportError:
            continue
    raise UnsupportedError("TensorBoard needs a package that writes its files: pip install tensorboardX.")
