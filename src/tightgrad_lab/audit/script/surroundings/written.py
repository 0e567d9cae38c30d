"""Files and folders that a script makes in the working folder while it is audited; they are removed afterwards."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR
MADE, LINKED = ("os.mkdir", "sqlite3.connect"), ("os.link", "os.symlink")
"""Events of Python's audit hooks whose first, or second, argument is a new name."""
NEW, KEPT = b"+", b"-"


def install(log: Path, home: Path) -> None:
    """Write the name of everything new below `home` to a file, before it is made.

    What was there is left alone, also under the name that the script moves it to.
    """
    root = os.path.join(os.path.realpath(home), "")
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seen: set[str] = set()

    def note(name: Any) -> None:
        path = _whole(name)
        if path.startswith(root) and path not in seen and not os.path.lexists(path):
            seen.add(path)
            os.write(out, NEW + os.fsencode(path) + b"\0")

    def note_moved(source: Any, target: Any) -> None:
        if _whole(source) in seen:
            note(target)
        else:
            os.write(out, KEPT + os.fsencode(_whole(target)) + b"\0")

    def hook(event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and len(args) > 2 and isinstance(args[2], int) and args[2] & WRITES
        if opened or event in MADE:
            note(args[0])
        elif event in LINKED:
            note(args[1])
        elif event == "os.rename":
            note_moved(args[0], args[1])

    sys.addaudithook(hook)


def _whole(name: Any) -> str:
    """The path with no link in its folders; "" for what is no name, as the number of an open file."""
    if not isinstance(name, str | bytes | os.PathLike):
        return ""
    path = os.path.abspath(os.fsdecode(name))
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def remove_new(logs: Iterable[Path]) -> None:
    """Remove what the logs name: files, and folders that are empty then."""
    noted = {entry for log in logs for entry in log.read_bytes().split(b"\0")}
    new, kept = ({os.fsdecode(one[1:]) for one in noted if one.startswith(sign)} for sign in (NEW, KEPT))
    for name in sorted(new - kept, key=len, reverse=True):
        try:
            if os.path.isdir(name) and not os.path.islink(name):
                os.rmdir(name)
            else:
                os.unlink(name)
        except OSError:  # gone, or not empty
            continue
