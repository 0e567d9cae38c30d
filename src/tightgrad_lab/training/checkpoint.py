"""A run's checkpoint: the pipeline's own state, and beside it model, optimizer, generators and what was measured.

- `checkpoint/latest`, written by the pipeline, last of all
- `checkpoint/step-00000042/rank-00001-of-00002.safetensors`, of the pipeline
- `checkpoint/step-00000042/training-00001-of-00002.safetensors`, of the loop

Each save has a folder of its own, and its files carry the same random id; they are taken up only together.
"""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.checkpoint.folder import newest_on_every_rank, save_state
from tightgrad.checkpoint.rank_file import save_id_of
from tightgrad.checkpoint.save_folder import file_name, newest
from tightgrad_lab.errors import RunError
from tightgrad_lab.training.ranks import Rank

LATEST = "latest"
_METADATA = "tightgrad_lab"


def has_checkpoint(folder: Path) -> bool:
    """Whether `folder` holds a complete checkpoint."""
    return (folder / LATEST).is_file()


def save_checkpoint(
    folder: Path,
    rank: Rank,
    pipe: tg.GradientPipeline,
    model: nn.Module,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    measured: Mapping[str, Any],
) -> None:
    """Write a checkpoint and remove the one that it replaces. Collective: every rank must call it, between two windows.

    Args:
        folder: of the checkpoints, shared by all ranks.
        rank: this one.
        pipe: attached to the model.
        model: the same on every rank; rank 0 writes it.
        scheduler: of the learning rate.
        measured: JSON values of rank 0.

    Raises:
        CheckpointError: on every rank, if any could not write; the previous checkpoint stays valid.
    """

    def training(save_id: str) -> dict[str, bytes]:
        tensors = _generators(rank)
        about: dict[str, Any] = {"save": save_id}
        if rank.rank == 0:
            optimizer = pipe.optimizer
            tensors |= {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{index}/{key}": t for key, t in state.items() if isinstance(t, Tensor)}
            rates = [group["lr"] for group in optimizer.param_groups]
            about |= {"measured": dict(measured), "scheduler": scheduler.last_epoch, "learning_rates": rates}
        local = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return {_file_name(rank.rank, rank.ranks): to_bytes(local, {_METADATA: json.dumps(about)})}

    replaced = _in_force(folder) if rank.rank == 0 else None
    written = save_state(pipe.state_dict, folder, pipe.adapter.collective, training)
    # Only what `latest` named: another folder may be that of a save that is under way.
    if replaced is not None and replaced != written:
        shutil.rmtree(replaced, ignore_errors=True)


def _in_force(folder: Path) -> Path | None:
    with suppress(tg.CheckpointError):
        return folder / newest(folder).name
    return None


def load_checkpoint(
    folder: Path,
    rank: Rank,
    pipe: tg.GradientPipeline,
    model: nn.Module,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
) -> dict[str, Any]:
    """Take up the newest checkpoint; return what was measured. Collective: every rank must call it.

    Raises:
        RunError: it was taken on another number of ranks, its files are of different saves, or it was replaced
            meanwhile.
        CheckpointError: it is damaged.
    """
    collective = pipe.adapter.collective
    found = newest_on_every_rank(folder, collective)
    pipe.load(folder)
    if newest_on_every_rank(folder, collective) != found:
        raise RunError(f"{folder / found.name} was replaced while it was read; does another run write to {folder}?")
    target = folder / found.name
    own = target / _file_name(rank.rank, rank.ranks)
    if not own.is_file():
        raise RunError(f"{own} is missing: the checkpoint is of another number of ranks than {rank.ranks}.")
    about, tensors = _read(target / _file_name(0, rank.ranks))
    own_about, own_tensors = _read(own)
    save_ids = {about.get("save", ""), own_about.get("save", ""), save_id_of(target / file_name(rank.rank, rank.ranks))}
    if len(save_ids) > 1:
        raise RunError(f"the files in {target} are of different saves; delete it, and start the run anew.")
    model.load_state_dict(_below("model/", tensors))
    optimizer = pipe.optimizer
    restored = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below("optimizer/", tensors).items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = tensor
    restored["state"] = state
    optimizer.load_state_dict(restored)
    for group, rate in zip(optimizer.param_groups, about["learning_rates"], strict=True):
        group["lr"] = rate
    scheduler.last_epoch = about["scheduler"]
    _restore_generators(own_tensors, rank)
    measured: dict[str, Any] = about["measured"]
    return measured


def _generators(rank: Rank) -> dict[str, Tensor]:
    found = {"generator/cpu": torch.get_rng_state()}
    if rank.device.type == "cuda":
        found["generator/cuda"] = torch.cuda.get_rng_state(rank.device)
    return found


def _restore_generators(tensors: Mapping[str, Tensor], rank: Rank) -> None:
    torch.set_rng_state(tensors["generator/cpu"])
    if rank.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["generator/cuda"], rank.device)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        about: dict[str, Any] = json.loads(file.metadata()[_METADATA])
        return about, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _file_name(rank: int, ranks: int) -> str:
    return f"training-{rank:05d}-of-{ranks:05d}.safetensors"
