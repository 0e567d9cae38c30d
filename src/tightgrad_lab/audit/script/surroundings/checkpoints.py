"""Checkpoints: none is written to disk, and one that is not there is empty, so that training starts from fresh weights.

What is saved is kept in memory under its path, so that the script can load, copy, move and remove it.
"""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tightgrad_lab.audit.script.bystanders import LOADED

Say = Callable[[str], None]


class Missing(dict[Any, Any]):
    """What a checkpoint that is not there holds: nothing, under every name."""

    def __missing__(self, key: object) -> "Missing":
        return Missing()


def install(say: Say) -> None:
    """Change how torch saves and loads, for the rest of this process."""
    kept: dict[str, bytes] = {}
    write, read = torch.save, torch.load

    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        path = _path(f)
        if path is None:  # a buffer in memory
            write(obj, f, *args, **kwargs)
            return
        buffer = io.BytesIO()
        write(obj, buffer, *args, **kwargs)
        kept[path] = buffer.getvalue()
        say("checkpoints are not written")

    def load(f: Any, map_location: Any = None, pickle_module: Any = None, **kwargs: Any) -> Any:
        path = _path(f)
        if path in kept:
            return read(io.BytesIO(kept[path]), "cpu", pickle_module, **kwargs)
        if isinstance(f, str | Path) and not Path(f).exists():
            say(f"{f} is not there: an empty checkpoint, which changes no weights")
            return Missing()
        return read(f, "cpu", pickle_module, **kwargs)

    torch.save, torch.load = save, load
    for module, name in ((os, "replace"), (os, "rename"), (shutil, "move")):
        setattr(module, name, _moved(getattr(module, name), kept, stays=False))
    for module, name in ((shutil, "copy"), (shutil, "copy2"), (shutil, "copyfile"), (os, "link"), (os, "symlink")):
        setattr(module, name, _moved(getattr(module, name), kept, stays=True))
    for name in ("remove", "unlink"):
        setattr(os, name, _removed(getattr(os, name), kept))
    known: Callable[..., Any] = torch.hub.list

    def models(*args: Any, **kwargs: Any) -> Any:
        try:
            return known(*args, **kwargs)
        except OSError:
            say("a list of torch.hub cannot be fetched: an empty one")
            return []

    torch.hub.list = models
    for cls in (nn.Module, torch.optim.Optimizer):
        setattr(cls, "load_state_dict", _unless_missing(cls.load_state_dict))  # noqa: B010
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        return

    def save_file(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
        save(tensors, filename)

    safetensors.torch.save_file = save_file


def _path(f: Any) -> str | None:
    """Where on disk a file is; None for one that is not on disk."""
    name = f if isinstance(f, str | Path) else getattr(f, "name", None)
    return os.path.abspath(name) if isinstance(name, str | Path) else None


def _moved(move: Callable[..., Any], kept: dict[str, bytes], *, stays: bool) -> Callable[..., Any]:
    def run(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        path = _path(source)
        if path not in kept:
            return move(source, target, *args, **kwargs)
        to = os.path.join(target, os.path.basename(path)) if os.path.isdir(target) else target
        kept[os.path.abspath(to)] = kept[path] if stays else kept.pop(path)
        return to

    return run


def _removed(remove: Callable[..., Any], kept: dict[str, bytes]) -> Callable[..., Any]:
    def run(path: Any, *args: Any, **kwargs: Any) -> Any:
        known = _path(path)
        if known not in kept:
            return remove(path, *args, **kwargs)
        del kept[known]
        return remove(path, *args, **kwargs) if os.path.exists(path) else None

    return run


def _unless_missing(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_state_dict(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, nn.Module):
            for name, parameter in self.named_parameters():
                if isinstance(state_dict, Missing) or name in state_dict:
                    setattr(parameter, LOADED, True)
        return None if isinstance(state_dict, Missing) else load(self, state_dict, *args, **kwargs)

    return load_state_dict
