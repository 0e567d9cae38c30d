"""The pipeline's state inside a checkpoint of torch.distributed.checkpoint (DCP), beside model and optimizer.

    torch.distributed.checkpoint.save({"model": ..., "optimizer": ..., **tg.dcp.state_dict(pipe)}, checkpoint_id=folder)
    torch.distributed.checkpoint.load({"model": ..., "optimizer": ...}, checkpoint_id=folder)
    num_consumed = tg.dcp.load(pipe, folder)

Every rank's state has a key of its own: DCP takes plain tensors under one key for replicas, and would keep one rank's.
A value is the bytes of the file that `GradientPipeline.save` writes, as one uint8 tensor: same digest, same id of the
save, same checks. So parts of two checkpoints that were written to one folder, one over the other, are refused.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from tightgrad.checkpoint.folder import state_with_id
from tightgrad.checkpoint.rank_file import serialized
from tightgrad.checkpoint.save_folder import FILE_SUFFIX, LATEST, file_name, folder_name
from tightgrad.collectives.dcp import Source, read_tensors
from tightgrad.core.errors import CheckpointError
from tightgrad.pipeline.pipeline import GradientPipeline

_KEY = re.compile(r"tightgrad\.(step-\d{8,18})\.(rank-(\d{5})-of-(\d{5,9}))")


def state_dict(pipe: GradientPipeline) -> dict[str, Tensor]:
    """Return this rank's state, for `torch.distributed.checkpoint.save`. Differs by rank; may be taken in mid-window.

    Collective: every rank must call it, as `torch.distributed.checkpoint.save`, since all parts of a save get the same
    random id.

    Raises:
        CheckpointError: on every rank, if another rank has no state to save.
    """
    collective = pipe.adapter.collective
    state, save_id = state_with_id(pipe.state_dict, "its state", collective)
    content = serialized(state, collective.rank, collective.world_size, save_id)
    name = file_name(collective.rank, collective.world_size).removesuffix(FILE_SUFFIX)
    return {f"tightgrad.{folder_name(state['step'])}.{name}": torch.frombuffer(bytearray(content), dtype=torch.uint8)}


def load(pipe: GradientPipeline, checkpoint: Source) -> int:
    """Restore what `state_dict` gave; return its `num_consumed`. Collective: every rank must call it.

    On another number of ranks than saved, residuals are handed over so that their sum is preserved.

    Args:
        pipe: attached as the one that was saved.
        checkpoint: the folder (`checkpoint_id`), or a `StorageReader` of torch.

    Raises:
        CheckpointError: on every rank, if any cannot read its part; nothing changed.
        StateMismatchError: the same, where the state does not fit this rank's plan and model.
    """
    rank, world_size = pipe.adapter.collective.rank, pipe.adapter.collective.world_size

    def mine(keys: Iterable[str]) -> list[str]:
        found = [match for key in keys if (match := _KEY.fullmatch(key))]
        own = [match[0] for match in found if int(match[3]) == rank]
        return own if all(int(match[4]) == world_size for match in found) else [match[0] for match in found]

    with TemporaryDirectory(prefix="tightgrad-") as folder:
        # A rank that cannot read finds nothing in its folder, and says so on all ranks.
        reason = ""
        try:
            _write_files(read_tensors(checkpoint, mine), Path(folder))
        except CheckpointError as error:
            reason = str(error)
        try:
            return pipe.load(folder)
        except CheckpointError as error:
            raise CheckpointError(reason or str(error).replace(folder, str(checkpoint))) from None


def _write_files(tensors: dict[str, Tensor], folder: Path) -> None:
    for key, content in tensors.items():
        match = _KEY.fullmatch(key)
        assert match is not None
        target = folder / match[1]
        target.mkdir(exist_ok=True)
        (target / f"{match[2]}{FILE_SUFFIX}").write_bytes(content.numpy().tobytes())
        (folder / LATEST).write_text(f"{match[1]} {int(match[4])}", encoding="ascii")
