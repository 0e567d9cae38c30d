"""Checkpoints: none is written, and one that is not there is empty, so that training starts from fresh weights."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

Say = Callable[[str], None]


class Missing(dict[Any, Any]):
    """What a checkpoint that is not there holds: nothing, under every name."""

    def __missing__(self, key: object) -> "Missing":
        return Missing()


def install(say: Say) -> None:
    """Change how torch saves and loads, for the rest of this process."""
    pretended: set[str] = set()

    def save(*args: Any, **kwargs: Any) -> None:
        path = args[1] if len(args) > 1 else kwargs.get("f", kwargs.get("filename"))
        if isinstance(path, str | Path):
            pretended.add(os.path.abspath(path))
        say("checkpoints are not written")

    def moved(move: Callable[..., Any]) -> Callable[..., Any]:
        def run(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(source, str | Path) and os.path.abspath(source) in pretended:
                return target
            return move(source, target, *args, **kwargs)

        return run

    read = torch.load

    def load(f: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(f, str | Path) and not Path(f).exists():
            say(f"{f} is not there: an empty checkpoint, which changes no weights")
            return Missing()
        kwargs["map_location"] = "cpu"
        return read(f, **kwargs)

    torch.save, torch.load = save, load
    os.replace, os.rename, shutil.move = moved(os.replace), moved(os.rename), moved(shutil.move)
    for cls in (nn.Module, torch.optim.Optimizer):
        setattr(cls, "load_state_dict", _unless_missing(cls.load_state_dict))  # noqa: B010
    try:
        import safetensors.torch
    except ModuleNotFoundError:
        return
    safetensors.torch.save_file = save


def _unless_missing(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_state_dict(self: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return None if isinstance(state_dict, Missing) else load(self, state_dict, *args, **kwargs)

    return load_state_dict
