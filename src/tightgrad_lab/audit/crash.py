"""An error in somebody's code, with the place in their file."""

import traceback
from pathlib import Path

from tightgrad_lab.errors import LabError

_ECHOES = ("connection closed", "connection reset", "connection refused", "broken pipe", "gloo", "timed out waiting")


def where_it_failed(error: BaseException, file: Path, folder: Path | None = None) -> str:
    """The error in one line: file and line of the user's innermost own code, that line, and what was raised.

    Args:
        error: as it was raised.
        file: the user's.
        folder: of files that are the user's too; that of `file` if not given.
    """
    first = next(iter(str(error).strip().splitlines()), "")
    words = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, LabError):
        return str(error)
    home = (folder or file.parent).resolve()
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(home)]
    own = [frame for frame in own if "site-packages" not in frame.filename]
    exact = [frame for frame in frames if Path(frame.filename).resolve() == file.resolve()]
    if not (own or exact):
        return words
    frame = (own or exact)[-1]
    line = f" `{frame.line}`" if frame.line else ""
    return f"{frame.filename}:{frame.lineno}{line}: {words}"


def is_from_another_rank(message: str) -> bool:
    """Whether an error only says that another rank has ended."""
    return any(echo in message.lower() for echo in _ECHOES)
