"""The pipeline's state in files: one safetensors file a rank, never pickle.

    folder/latest                        the name of the newest complete checkpoint
    folder/step-00000042/rank-00001-of-00004.safetensors

A checkpoint counts only when every rank has written its file, so one that was cut short (a killed rank, a full disk)
leaves the one before in force. A residual is what a rank has not sent yet; on another number of ranks, residuals are
handed over so that their sum is preserved.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from tightgrad.core.errors import CheckpointError, StateMismatchError
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Slot

LATEST = "latest"
_METADATA = "tightgrad"


def save_state(state: Mapping[str, Any], folder: Path, collective: Collective) -> Path:
    """Write every rank's state. Collective: every rank must call it.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: on every rank, if any could not write; the checkpoint before stays in force.
    """
    target = folder / f"step-{state['step']:08d}"
    failure = ""
    try:
        target.mkdir(parents=True, exist_ok=True)
        _write(target / _file_name(collective.rank, collective.world_size), _serialized(state, collective.world_size))
    except OSError as error:
        failure = str(error)
    _agree(failure, target, collective)
    if collective.rank == 0:
        try:
            _write(folder / LATEST, target.name.encode())
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
    try:
        target = folder / (folder / LATEST).read_text().strip()
    except OSError as error:
        raise CheckpointError(f"no complete checkpoint in {folder}: {error}.") from None
    files = sorted(target.glob("rank-*-of-*.safetensors"))
    saved_size = _saved_world_size(target, files)
    if saved_size == world_size:
        return _deserialized(target / _file_name(rank, saved_size))
    states = [_deserialized(target / _file_name(other, saved_size)) for other in range(saved_size)]
    if any(state["open_window"] is not None for state in states):
        raise StateMismatchError(
            f"{target} was taken in mid-window on {saved_size} ranks and cannot be taken up by {world_size}; resume on "
            f"{saved_size}, or save after step()."
        )
    handed = [state for other, state in enumerate(states) if other % world_size == rank]
    return {**states[0], "slots": _handed_over(handed, states[0], slots)}


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
                total[parameter] = added(total[parameter], tensor) if parameter in total else tensor
        result[name] = total
    return result


def _file_name(rank: int, world_size: int) -> str:
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def _saved_world_size(target: Path, files: list[Path]) -> int:
    sizes = {int(file.stem.rsplit("-", 1)[1]) for file in files}
    if len(sizes) != 1 or len(files) != next(iter(sizes)):
        raise CheckpointError(f"{target} holds {len(files)} rank files, not one for each rank; it is incomplete.")
    return sizes.pop()


def _serialized(state: Mapping[str, Any], world_size: int) -> bytes:
    tensors = {f"slots/{slot}/{name}": t for slot, values in state["slots"].items() for name, t in values.items()}
    window = state["open_window"]
    if window is not None:
        tensors |= {f"grads/{name}": tensor for name, tensor in window["grads"].items()}
        tensors |= {f"sums/{name}": tensor for name, tensor in window["sums"].items()}
        window = {key: value for key, value in window.items() if key not in ("grads", "sums")}
    local = {key: tensor.contiguous().cpu() for key, tensor in tensors.items()}
    numbers = {key: value for key, value in state.items() if key not in ("slots", "open_window")}
    about = {**numbers, "open_window": window, "world_size": world_size, "slots": list(state["slots"])}
    body = to_bytes(local)
    about["digest"] = hashlib.blake2b(body, digest_size=16).hexdigest()
    return to_bytes(local, {_METADATA: json.dumps(about)})


def _deserialized(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_METADATA])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        digest = about.pop("digest")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read, it is damaged or no pipeline state: {error}.") from None
    if hashlib.blake2b(to_bytes(tensors), digest_size=16).hexdigest() != digest:
        raise CheckpointError(f"{path} is damaged: its contents do not match their digest.")
    slots: dict[str, dict[str, Tensor]] = {slot: {} for slot in about.pop("slots")}
    window: dict[str, dict[str, Tensor]] = {"grads": {}, "sums": {}}
    for key, tensor in tensors.items():
        kind, rest = key.split("/", 1)
        if kind == "slots":
            slot, name = rest.split("/", 1)
            slots[slot][name] = tensor
        else:
            window[kind][rest] = tensor
    about.pop("world_size")
    open_window = about["open_window"]
    return {**about, "slots": slots, "open_window": None if open_window is None else {**open_window, **window}}


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
