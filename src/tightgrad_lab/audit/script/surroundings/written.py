"""Files and folders that a script makes in the working folder while it is audited; they are removed afterwards."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR
MADE, LINKED = ("os.mkdir", "sqlite3.connect"), ("os.rename", "os.link", "os.symlink")
"""Events of Python's audit hooks whose first, or second, argument is a new name."""


def install(log: Path, home: Path) -> None:
    """Write the name of everything new below `home` to a file, before it is made. What was there is left alone."""
    root = os.path.join(os.path.realpath(home), "")
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seen: set[str] = set()

    def note(name: Any) -> None:
        if not isinstance(name, str | bytes | os.PathLike):
            return
        path = os.path.join(os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(name)))), "")
        path += os.path.basename(os.fsdecode(name))
        if path.startswith(root) and path not in seen and not os.path.lexists(path):
            seen.add(path)
            os.write(out, os.fsencode(path) + b"\0")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and len(args) > 2 and isinstance(args[2], int) and args[2] & WRITES
        if opened or event in MADE:
            note(args[0])
        elif event in LINKED:
            note(args[1])

    sys.addaudithook(hook)


def remove_new(logs: Iterable[Path]) -> None:
    """Remove what the logs name: files, and folders that are empty then."""
    names = {os.fsdecode(name) for log in logs for name in log.read_bytes().split(b"\0") if name}
    for name in sorted(names, key=len, reverse=True):
        try:
            if os.path.isdir(name) and not os.path.islink(name):
                os.rmdir(name)
            else:
                os.unlink(name)
        except OSError:  # gone, or not empty
            continue
