"""The pipeline's state in files: one safetensors file a rank, never pickle.

    folder/latest                        "step-00000042 4": the newest complete checkpoint, and its number of ranks
    folder/step-00000042/rank-00001-of-00004.safetensors

A checkpoint counts only when every rank has written its file, so one that was cut short (a killed rank, a full disk)
leaves the one before in force. A residual is what a rank has not sent yet; on another number of ranks, residuals are
handed over so that their sum is preserved.
"""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tightgrad.core.errors import CheckpointError, StateMismatchError, TightGradError
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Slot
from tightgrad.pipeline.rank_file import deserialized, serialized

LATEST = "latest"
FILE_SUFFIX = ".safetensors"
_LATEST = re.compile(r"(step-\d{8,18}) ([1-9]\d{0,8})")
_LATEST_NBYTES = 64  # more than it has


def save_state(make_state: Callable[[], Mapping[str, Any]], folder: Path, collective: Collective) -> Path:
    """Write every rank's state. Collective: every rank must call it.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: on every rank, if any could not write, or another rank's `make_state` raised; the checkpoint
            before stays in force.
        Exception: what this rank's `make_state` raised, when the other ranks know.
    """
    try:
        state = make_state()
    except Exception as error:
        with suppress(CheckpointError):
            _agree(str(error) or type(error).__name__, folder, collective)
        raise
    target = folder / folder_name(state)
    failure = ""
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write(
            target / file_name(collective.rank, collective.world_size),
            serialized(state, collective.rank, collective.world_size),
        )
    except OSError as error:
        failure = str(error)
    _agree(failure, target, collective)
    if collective.rank == 0:
        try:
            _write(folder / LATEST, f"{target.name} {collective.world_size}".encode())
        except OSError as error:
            failure = str(error)
    _agree(failure, folder / LATEST, collective)
    return target


def load_state(folder: Path, slots: Mapping[str, Slot], rank: int, world_size: int) -> dict[str, Any]:
    """Read this rank's state from the newest complete checkpoint. Every rank reads files only.

    Raises:
        CheckpointError: there is none, or a file is missing, damaged or of another format.
        StateMismatchError: it was taken in mid-window on another number of ranks.
    """
    name, saved_size = _newest(folder)
    target = folder / name
    if saved_size == world_size:
        return _of_rank(target, rank, saved_size)
    states = [_of_rank(target, other, saved_size) for other in range(saved_size)]
    if any(state["open_window"] is not None for state in states):
        raise StateMismatchError(
            f"{target} was taken in mid-window on {saved_size} ranks and cannot be taken up by {world_size}; resume on "
            f"{saved_size}, or save after step()."
        )
    handed = [state for other, state in enumerate(states) if other % world_size == rank]
    return {**states[0], "slots": _handed_over(handed, states[0], slots)}


def saved_world_size(folder: Path) -> int:
    """The number of ranks that wrote the newest complete checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    return _newest(folder)[1]


def check_same_ranks(folder: Path, collective: Collective) -> None:
    """Raise `StateMismatchError` unless the newest complete checkpoint is of as many ranks."""
    saved = saved_world_size(folder)
    if saved != collective.world_size:
        raise StateMismatchError(
            f"{folder} is of {saved} ranks, and its residuals are about the shards that these kept; "
            f"{collective.world_size} keep others. Resume on {saved}, or call flush() before save()."
        )


def load_on_every_rank(
    folder: Path, slots: Mapping[str, Slot], collective: Collective, check: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """`load_state` and then `check`, agreed on by all ranks. Collective: every rank must call it.

    Raises:
        CheckpointError: on every rank, if any cannot read its file, or its check fails, or they read different steps.
        StateMismatchError: the same, where that was this rank's own error.
    """
    state: dict[str, Any] = {}
    failure: TightGradError | None = None
    try:
        state = load_state(folder, slots, collective.rank, collective.world_size)
        check(state)
    except TightGradError as error:
        failure = error
    step = -1 if failure else int(state["step"])
    told = torch.tensor([step], dtype=torch.int64).to(collective.control_device)
    steps = collective.all_gather(told).view(-1).tolist()
    if failure is not None:
        raise failure
    failed = [rank for rank, told_step in enumerate(steps) if told_step < 0]
    if failed:
        raise CheckpointError(
            f"rank {', '.join(map(str, failed))} cannot load {folder}, and says why; this rank could. Nothing was "
            "loaded."
        )
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the ranks read checkpoints of different steps from {folder}: {steps}. It must be one folder that all "
            "ranks share."
        )
    return state


def _newest(folder: Path) -> tuple[str, int]:
    """The newest complete checkpoint's folder, and its number of ranks."""
    try:
        with (folder / LATEST).open("rb") as file:
            text = file.read(_LATEST_NBYTES).decode("ascii", "replace").strip()
    except OSError as error:
        raise CheckpointError(f"no complete checkpoint in {folder}: {error}.") from None
    match = _LATEST.fullmatch(text)
    if match is None:
        raise CheckpointError(
            f"{folder / LATEST} holds {text!r}, not a checkpoint and its number of ranks such as 'step-00000042 4'; "
            "write those of the newest complete one into it."
        )
    return match[1], int(match[2])


def _of_rank(target: Path, rank: int, world_size: int) -> dict[str, Any]:
    state = deserialized(target / file_name(rank, world_size), rank, world_size)
    if folder_name(state) != target.name:
        raise CheckpointError(
            f"{target} holds a file of rank {rank} from step {state.get('step')!r}; its files were mixed up."
        )
    return state


def _handed_over(
    handed: list[dict[str, Any]], first: dict[str, Any], slots: Mapping[str, Slot]
) -> dict[str, dict[str, Tensor]]:
    result: dict[str, dict[str, Tensor]] = {}
    for name in first["slots"]:
        if name in slots and slots[name].across_ranks == "equal":
            result[name] = first["slots"][name]
            continue
        total: dict[str, Tensor] = {}
        added = slots[name].added if name in slots else torch.add
        for state in handed:
            for parameter, tensor in state["slots"].get(name, {}).items():
                if parameter in total:
                    _check_alike(name, parameter, total[parameter], tensor)
                total[parameter] = added(total[parameter], tensor) if parameter in total else tensor
        result[name] = total
    return result


def _check_alike(slot: str, parameter: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.dtype != second.dtype:
        raise StateMismatchError(
            f"{slot} of {parameter!r} has {tuple(first.shape)} {first.dtype} on one rank and {tuple(second.shape)} "
            f"{second.dtype} on another; the files are not of one run."
        )


def folder_name(state: Mapping[str, Any]) -> str:
    """The folder of a state's step."""
    step = state.get("step")
    return f"step-{step:08d}" if isinstance(step, int) else ""


def file_name(rank: int, world_size: int) -> str:
    """The file of one rank."""
    return f"rank-{rank:05d}-of-{world_size:05d}{FILE_SUFFIX}"


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _agree(failure: str, path: Path, collective: Collective) -> None:
    flags = torch.tensor([float(bool(failure))], dtype=torch.float64).to(collective.control_device)
    failed = collective.all_gather(flags).view(-1).nonzero().view(-1).tolist()
    if failed:
        here = f" Here: {failure}." if failure else ""
        raise CheckpointError(
            f"rank {', '.join(map(str, failed))} could not write {path}; the checkpoint before stays in force.{here}"
        )
