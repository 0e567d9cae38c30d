"""One rank's state in one safetensors file: tensors by slot and parameter name, numbers as JSON in the metadata.

A digest covers all of it, so that a changed bit is found before anything is restored. Nothing in a file is trusted:
whatever it holds, reading it gives a state or a `CheckpointError`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from tightgrad.core.errors import CheckpointError

_METADATA = "tightgrad"
_COMPLEX = "complex"
_WINDOW_PARTS = ("grads", "sums")
_SAVE_ID = re.compile(r"(?:[0-7][0-9a-f]{15})?")


def serialized(state: Mapping[str, Any], rank: int, world_size: int, save_id: str = "") -> bytes:
    """Return the content of the file of `rank`; `save_id` is that of all files of one save."""
    # Slots by their place in the list: their names, and those of parameters, may hold any character.
    slots = list(state["slots"])
    tensors = {f"slots/{i}/{name}": t for i, slot in enumerate(slots) for name, t in state["slots"][slot].items()}
    window = state["open_window"]
    if window is not None:
        tensors |= {f"{part}/{name}": tensor for part in _WINDOW_PARTS for name, tensor in window[part].items()}
        window = {key: value for key, value in window.items() if key not in _WINDOW_PARTS}
    pairs = [key for key, tensor in tensors.items() if tensor.is_complex()]  # safetensors has no complex128
    local = {key: _as_real(tensor).contiguous().cpu() for key, tensor in tensors.items()}
    numbers = {key: value for key, value in state.items() if key not in ("slots", "open_window")}
    about = {**numbers, "open_window": window, "slots": slots, "rank": rank, "world_size": world_size}
    if pairs:
        about[_COMPLEX] = pairs
    if save_id:
        about["save"] = save_id
    return to_bytes(local, {_METADATA: json.dumps({**about, "digest": _digest(about, local)})})


def deserialized(path: Path, rank: int, world_size: int) -> dict[str, Any]:
    """Undo `serialized`; the id is at "save", empty in files of versions that gave none.

    Raises:
        CheckpointError: the file is missing, damaged, no pipeline state, or another rank's.
    """
    try:
        about, tensors = _read(path)
        return _state(about, tensors, path, rank, world_size)
    # What json and safetensors raise for bytes that they cannot read, and what is raised by values of another kind
    # than `serialized` writes.
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read, it is damaged or no pipeline state: {type(error).__name__}: {error}."
        ) from None


def save_id_of(path: Path) -> str:
    """Return the id of the save that a file is of; empty for files of versions that gave none.

    Raises:
        CheckpointError: the file is missing, damaged or no pipeline state.
    """
    try:
        return str(_about(path).get("save", ""))
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}.") from None


def _about(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        about = json.loads((file.metadata() or {})[_METADATA])
    if not isinstance(about, dict):
        raise TypeError(f"its metadata is a {type(about).__name__}, not an object")
    return about


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    about = _about(path)
    with safe_open(path, "pt") as file:
        return about, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _state(about: dict[str, Any], tensors: dict[str, Tensor], path: Path, rank: int, world_size: int) -> dict[str, Any]:
    if about.pop("digest") != _digest(about, tensors):
        raise CheckpointError(f"{path} is damaged: its contents do not match their digest.")
    found = (about.pop("rank"), about.pop("world_size"))
    if found != (rank, world_size):
        raise CheckpointError(
            f"{path} was written by rank {found[0]} of {found[1]}, and then renamed; restore the rank's own file."
        )
    for key in about.pop(_COMPLEX, []):
        if tensors[key].shape[-1:] != (2,) or not tensors[key].is_floating_point():
            raise ValueError(f"{key} is no complex tensor")
        # A copy, since a file aligns tensors for real numbers, and torch crashes on complex ones of such an address.
        tensors[key] = torch.view_as_complex(tensors[key].clone())
    save_id = about.pop("save", "")
    if not _SAVE_ID.fullmatch(save_id):
        raise ValueError(f"the id of its save is {save_id!r}, not 16 hexadecimal digits")
    names = list(about.pop("slots"))
    slots: dict[str, dict[str, Tensor]] = {slot: {} for slot in names}
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _WINDOW_PARTS}
    for key, tensor in tensors.items():
        kind, rest = key.split("/", 1)
        if kind == "slots":
            index, name = rest.split("/", 1)
            slots[names[int(index)]][name] = tensor
        else:
            parts[kind][rest] = tensor
    window = about["open_window"]
    return {**about, "save": save_id, "slots": slots, "open_window": None if window is None else {**window, **parts}}


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _digest(about: Mapping[str, Any], tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    digest.update(to_bytes(tensors))
    return digest.hexdigest()
