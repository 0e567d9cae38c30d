"""The pipeline's state in files: one safetensors file a rank, never pickle, in a folder for each save.

A checkpoint counts only when every rank has written its file, so one that was cut short (a killed rank, a full disk)
leaves the previous one valid. All files of a save carry the same random id, and `load` takes them only together. A
residual is what a rank has not sent yet; on another number of ranks, residuals are handed over so that their sum is
preserved.
"""

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tightgrad.checkpoint.rank_file import deserialized, serialized
from tightgrad.checkpoint.save_folder import (
    LATEST,
    Newest,
    enter_folder,
    file_name,
    folder_name,
    make_folder,
    newest,
    remove_files,
    step_of,
    sync_folder,
    write_file,
)
from tightgrad.checkpoint.state import check_count
from tightgrad.core.collective import failed_ranks, gathered
from tightgrad.core.errors import CheckpointError, StateMismatchError, TightGradError
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Slot

_ID_BITS = 63  # of a save, so that it fits an int64
_MOST = 2**62  # of a number that ranks compare; an edited file may hold any


def save_state(
    make_state: Callable[[], Mapping[str, Any]],
    folder: Path,
    collective: Collective,
    beside: Callable[[str], Mapping[str, bytes]] = lambda save_id: {},
    write_rest: Callable[[Path], None] | None = None,
) -> Path:
    """Write every rank's state. Collective: every rank must call it.

    Args:
        make_state: returns this rank's state.
        folder: where all checkpoints are, on a disk that all ranks share.
        collective: the ranks.
        beside: is given the save's id, and returns what else this rank writes into the checkpoint's folder, by name.
        write_rest: writes more files into the checkpoint's folder; may be collective.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: on every rank, if any could not write, or another rank's `make_state` raised; the previous
            checkpoint stays valid.
        Exception: what this rank's `make_state` raised, when the other ranks know.
    """
    rank, world_size = collective.rank, collective.world_size
    state, save_id = state_with_id(make_state, folder, collective)
    new = Newest(state["step"], _made_folder(folder, state["step"], collective), world_size)
    target = folder / new.name
    files: dict[str, bytes] = {}
    cause: Exception | None = None
    try:
        files = {**beside(save_id), file_name(rank, world_size): serialized(state, rank, world_size, save_id)}
        if rank > 0:
            enter_folder(target)
        for name, content in files.items():
            write_file(target / name, content)
        sync_folder(target)
    except Exception as error:
        cause = error
    try:
        agree(cause, target, collective)
        if write_rest is not None:
            agree(_failure_of(write_rest, target), target, collective)
        agree(_put_in_force(folder, new) if rank == 0 else None, folder / LATEST, collective)
    except CheckpointError:
        remove_files(target, list(files) if rank > 0 else None)
        raise
    return target


def _failure_of(write_rest: Callable[[Path], None], target: Path) -> Exception | None:
    try:
        write_rest(target)
        sync_folder(target)
    except Exception as error:
        return error
    return None


def state_with_id(
    make_state: Callable[[], Mapping[str, Any]], folder: object, collective: Collective
) -> tuple[Mapping[str, Any], str]:
    """Make this rank's state, and draw a random id of the save, the same on every rank. Collective: every rank must
    call it.

    Raises:
        CheckpointError: on every rank, if another rank's `make_state` raised, or the ranks are at different steps.
        Exception: what this rank's `make_state` raised, when the other ranks know.
    """
    try:
        state = make_state()
    except Exception:
        gathered([-1, 0], collective)
        raise
    drawn = secrets.randbits(_ID_BITS) if collective.rank == 0 else 0
    told = gathered([state["step"], drawn], collective)
    _raise_failed([rank for rank, (step, _) in enumerate(told) if step < 0], "", folder)
    steps = [step for step, _ in told]
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the ranks are at different steps ({', '.join(map(str, steps))}), so their states are not one checkpoint; "
            "call save() at the same place of the loop on every rank."
        )
    return state, f"{told[0][1]:016x}"


def _made_folder(folder: Path, step: int, collective: Collective) -> int:
    """The number of a new folder, which rank 0 makes."""
    number, cause = 0, None
    if collective.rank == 0:
        try:
            number = make_folder(folder, step)
        except OSError as error:
            cause = error
    number = gathered([number], collective)[0][0]
    if number == 0:
        _raise_failed([0], f" Here: {cause}." if cause else "", folder / folder_name(step))
    return number


def _put_in_force(folder: Path, new: Newest) -> OSError | None:
    """Let `latest` name a checkpoint whose files all ranks have written; what went wrong, if it does not name it."""
    try:
        write_file(folder / LATEST, new.text.encode())
    except OSError as error:
        with suppress(CheckpointError):
            if newest(folder) == new:
                return None
        return error
    # Where this fails, a loss of power may bring the checkpoint before back, which is whole.
    with suppress(OSError):
        sync_folder(folder)
    return None


def load_state(folder: Path, found: Newest, slots: Mapping[str, Slot], rank: int, world_size: int) -> dict[str, Any]:
    """Read this rank's state from a checkpoint. Every rank reads files only.

    Raises:
        CheckpointError: a file is missing, damaged, of another format or of another save.
        StateMismatchError: it was taken in mid-window on another number of ranks.
    """
    target, saved_size = folder / found.name, found.world_size
    if saved_size == world_size:
        return _of_rank(target, rank, saved_size)
    states = [_of_rank(target, other, saved_size) for other in range(saved_size)]
    _check_one_save([_compared(state) for state in states], target)
    if any(state["open_window"] is not None for state in states):
        raise StateMismatchError(
            f"{target} was taken in mid-window on {saved_size} ranks and cannot be taken up by {world_size}; resume on "
            f"{saved_size}, or save after step()."
        )
    handed = [state for other, state in enumerate(states) if other % world_size == rank]
    return {**states[0], "slots": _handed_over(handed, states[0], slots)}


def check_same_ranks(folder: Path, saved_size: int, world_size: int) -> None:
    """Raise `StateMismatchError` unless the checkpoint was saved by as many ranks."""
    if saved_size != world_size:
        raise StateMismatchError(
            f"{folder} is of {saved_size} ranks, and its residuals are about the shards that these kept; "
            f"{world_size} keep others. Resume on {saved_size}, or call flush() before save()."
        )


def has_checkpoint(folder: Path, collective: Collective) -> bool:
    """Tell whether rank 0 sees that a checkpoint was ever completed here. Collective: every rank must call it."""
    mine = int(collective.rank == 0 and (folder / LATEST).exists())
    return bool(gathered([mine], collective)[0][0])


def newest_on_every_rank(folder: Path, collective: Collective) -> Newest:
    """Return which checkpoint is the newest complete one, as rank 0 reads it. Collective: every rank must call it.

    Raises:
        CheckpointError: on every rank, if there is none; rank 0 says why.
    """
    row = [-1, 0, 0]
    failure: CheckpointError | None = None
    if collective.rank == 0:
        try:
            found = newest(folder)
            row = [found.step, found.number, found.world_size]
        except CheckpointError as error:
            failure = error
    step, number, world_size = gathered(row, collective)[0]
    if failure is not None:
        raise failure
    if step < 0:
        raise CheckpointError(f"rank 0 cannot load {folder}, and says why. Nothing was loaded.")
    return Newest(step, number, world_size)


def load_on_every_rank(
    folder: Path, slots: Mapping[str, Slot], collective: Collective, check: Callable[[dict[str, Any], Newest], None]
) -> dict[str, Any]:
    """Load the newest complete checkpoint and `check` it, agreed on by all ranks. Collective: every rank must call it.

    Args:
        folder: where all checkpoints are.
        slots: what the plan remembers.
        collective: the ranks.
        check: is given this rank's state and which checkpoint it is from, and raises where it does not fit.

    Raises:
        CheckpointError: on every rank, if any cannot read its file, or its check fails, or they read different saves.
        StateMismatchError: the same, where that was this rank's own error.
    """
    found = newest_on_every_rank(folder, collective)
    state: dict[str, Any] = {}
    compared: list[int] = []
    failure: TightGradError | None = None
    try:
        state = load_state(folder, found, slots, collective.rank, collective.world_size)
        check(state, found)
        compared = _compared(state)
    except TightGradError as error:
        failure = error
    failed = failed_ranks(failure, collective)
    if failure is not None:
        raise failure
    if failed:
        raise CheckpointError(
            f"rank {', '.join(map(str, failed))} cannot load {folder}, and says why; this rank could. Nothing was "
            "loaded."
        )
    _check_one_save(gathered(compared, collective), folder / found.name)
    return state


def _compared(state: Mapping[str, Any]) -> list[int]:
    """What the files of one save have in common: the id, which those of earlier versions lack, and counters."""
    check_count("consecutive_skips", state.get("consecutive_skips"))
    is_open = state["open_window"] is not None
    return [int(state["step"]), int(state["save"] or "0", 16), min(state["consecutive_skips"], _MOST), int(is_open)]


def _check_one_save(rows: list[list[int]], target: Path) -> None:
    if any(row != rows[0] for row in rows):
        names = [
            f"rank {rank}: {f'save {save_id:016x}' if save_id else 'no id'}, step {step}, {skips} skipped, "
            f"{'in a window' if is_open else 'between windows'}"
            for rank, (step, save_id, skips, is_open) in enumerate(rows)
        ]
        raise CheckpointError(
            f"the files in {target} are of different saves ({'; '.join(names)}), so nothing was loaded; bring the "
            f"files of one save back, or let {target.parent / LATEST} name another checkpoint and its number of ranks."
        )


def _of_rank(target: Path, rank: int, world_size: int) -> dict[str, Any]:
    state = deserialized(target / file_name(rank, world_size), rank, world_size)
    if state.get("step") != step_of(target.name):
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


def agree(cause: Exception | None, path: Path, collective: Collective) -> None:
    """Raise `CheckpointError` on every rank if any has a cause. Collective: every rank must call it."""
    here = f" Here: {str(cause) or type(cause).__name__}." if cause is not None else ""
    try:
        _raise_failed(failed_ranks(cause, collective), here, path)
    except CheckpointError as error:
        raise error from cause


def _raise_failed(failed: list[int], here: str, path: object) -> None:
    if failed:
        raise CheckpointError(
            f"rank {', '.join(map(str, failed))} could not write {path}; the previous checkpoint stays valid.{here}"
        )
