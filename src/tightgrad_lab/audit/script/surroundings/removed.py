"""Names that torch and numpy once had, and that older scripts still import."""

import builtins
import collections.abc
import math
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np

Say = Callable[[str], None]
SIX = {
    "inf": math.inf,
    "container_abcs": collections.abc,
    "string_classes": (str, bytes),
    "int_classes": int,
}
"""Of torch._six, which torch 2.0 removed."""
ALIASES = ("float", "int", "object", "complex", "str")
"""Of Python's own types, which numpy 1.24 removed."""


class _Six(MetaPathFinder, Loader):
    def __init__(self, say: Say) -> None:
        self._say = say

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == "torch._six" else None

    def exec_module(self, module: ModuleType) -> None:
        self._say("torch._six, which torch no longer has: its names")
        vars(module).update(SIX)


def install(say: Say) -> None:
    """Give both back, and say it when they are used."""
    sys.meta_path.append(_Six(say))
    own: Callable[[str], Any] | None = getattr(np, "__getattr__", None)

    def get(name: str) -> Any:
        if name in ALIASES:
            say(f"numpy.{name}, which numpy no longer has: Python's")
            return getattr(builtins, name)
        if own is None:
            raise AttributeError(name)
        return own(name)

    vars(np)["__getattr__"] = get
