"""Where in a script something was called."""

import sys
import sysconfig
from pathlib import Path
from types import FrameType

import tightgrad

_OWN = str(Path(__file__).parents[2])
_LIBRARIES = (
    sysconfig.get_paths()["purelib"],
    sysconfig.get_paths()["stdlib"],
    str(Path(tightgrad.__file__).parent),
    _OWN,
)


def caller(depth: int = 2) -> str:
    """File and line of the innermost frame that is no library's; the script's own if all else fails."""
    frame: FrameType | None = sys._getframe(depth)
    best = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith("<") and not _is_library(name):
            return f"{name}:{frame.f_lineno}"
        if not best and "site-packages/torch/" not in name and not name.startswith((_OWN, "<")):
            best = f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return best or "somewhere"


def _is_library(name: str) -> bool:
    return name.startswith(_LIBRARIES) or "/site-packages/" in name or "/dist-packages/" in name  # wherever they lie
