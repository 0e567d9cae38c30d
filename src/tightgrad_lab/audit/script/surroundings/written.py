"""Files and folders that a script makes in the working folder while it is audited; they are removed afterwards."""

import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR
NEW, KEPT, ALL = b"+", b"-", b"*"
"""Signs of an entry: a name that is new, one that holds what was there before, and word that nothing may be removed."""


def install(log: Path, home: Path) -> None:
    """Write the name of everything new below `home` to a file, before it is made.

    What was there is left alone, also under the name that the script moves it to. Once the script has removed
    something that was there, which it may have copied, nothing is removed at all.
    """
    root = os.path.join(os.path.realpath(home), "")
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    began = time.time()
    made: set[str] = set()
    touched: set[str] = set()
    opening = threading.local()

    def say(sign: bytes, path: str = "") -> None:
        os.write(out, sign + os.fsencode(path) + b"\0")

    def note(path: str) -> None:
        if not path or path in made:
            return
        if os.path.lexists(path):
            touched.add(path)
            return
        made.add(path)
        if path.startswith(root):
            say(NEW, path)

    def note_moved(source: str, target: str) -> None:
        if source in made:
            made.discard(source)
            note(target)
            return
        for one in [target, *(one for one in made if one.startswith(os.path.join(target, "")))]:
            made.discard(one)
            say(KEPT, one)

    def note_removed(path: str) -> None:
        if path in made:
            made.discard(path)
        elif not path or path in touched or _older(path, began):
            say(ALL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if len(args) > 2 and isinstance(args[2], int) and args[2] & WRITES:
                note(_whole(args[0], getattr(opening, "folder", -1) if args[1] is None else -1))
        elif event in ("os.mkdir", "os.symlink"):
            note(_whole(args[event == "os.symlink"], args[2]))
        elif event == "sqlite3.connect":
            note(_whole(args[0]))
        elif event == "os.link":
            note(_whole(args[1], args[3]))
        elif event == "os.rename":
            note_moved(_whole(args[0], args[2]), _whole(args[1], args[3]))
        elif event in ("os.remove", "os.rmdir"):
            note_removed(_whole(args[0], args[1]))

    begin = os.open

    def open_below(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        opening.folder = -1 if dir_fd is None else dir_fd  # no part of the event
        try:
            return begin(path, flags, mode, dir_fd=dir_fd)
        finally:
            opening.folder = -1

    os.open = open_below
    sys.addaudithook(hook)


def _whole(name: Any, folder: int = -1) -> str:
    """The path with no link in its folders; "" for what is no name, as the number of an open file, or is not certain.

    Args:
        name: as it was given.
        folder: the number of the open folder that it is relative to; -1 for the working folder.
    """
    if not isinstance(name, str | bytes | os.PathLike):
        return ""
    try:
        above = os.getcwd() if folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
    except OSError:  # no Linux, or no such folder
        return ""
    head, tail = os.path.split(os.path.join(above, os.fsdecode(name)).rstrip("/"))
    return (
        os.path.realpath(os.path.join(head, tail))
        if tail in ("", ".", "..")
        else os.path.join(os.path.realpath(head), tail)
    )


def _older(path: str, than: float) -> bool:
    """Whether a file has content, or a name, from before."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return min(found.st_mtime, found.st_ctime) < than


def remove_new(logs: Iterable[Path]) -> None:
    """Remove what the logs name: files, and folders that are empty then."""
    noted = {entry for log in logs for entry in log.read_bytes().split(b"\0")}
    if ALL in noted:
        return
    new, kept = ({os.fsdecode(one[1:]) for one in noted if one.startswith(sign)} for sign in (NEW, KEPT))
    if "" in kept:  # something was moved to a place that is not certain
        return
    for name in sorted(new - kept, key=len, reverse=True):
        if os.path.realpath(os.path.dirname(name)) != os.path.dirname(name):
            continue  # a link has taken the place of a folder
        try:
            if os.path.isdir(name) and not os.path.islink(name):
                os.rmdir(name)
            else:
                os.unlink(name)
        except OSError:  # gone, or not empty
            continue
