"""A download that goes on where it was stopped, and is checked before it is used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tightgrad_lab.fetch.dataset import BLOCK_NBYTES, Report, SourceError, sha256_of

TIMEOUT_SECONDS = 30
PARTIAL = 206
UNSATISFIABLE = 416


class Session(Protocol):
    """The part of `requests.Session` that is used."""

    def get(self, url: str, *, headers: Mapping[str, str], stream: bool, timeout: float) -> object:
        """Send a request."""


def download(session: Session, url: str, target: Path, sha256: str, report: Report) -> Path:
    """Download to `target`; what an earlier try left beside it is gone on with.

    Raises:
        SourceError: the address cannot be reached, or gives something else.
    """
    import requests

    if target.is_file() and sha256_of(target) == sha256:
        return target
    partial = target.with_name(f"{target.name}.part")
    begun = partial.stat().st_size if partial.is_file() else 0
    try:
        answer = session.get(
            url,
            headers={"Range": f"bytes={begun}-"} if begun else {},
            stream=True,
            timeout=TIMEOUT_SECONDS,
        )
        assert isinstance(answer, requests.Response)
        with answer:
            if answer.status_code != UNSATISFIABLE:  # else everything is there already
                answer.raise_for_status()
                if answer.status_code != PARTIAL:
                    begun = 0
                length = answer.headers.get("Content-Length")
                total = begun + int(length) if length else None
                with partial.open("ab" if begun else "wb") as file:
                    for block in answer.iter_content(BLOCK_NBYTES):
                        file.write(block)
                        begun += len(block)
                        report(begun, total)
    except (requests.RequestException, OSError) as error:
        raise SourceError(_reason(error)) from error
    return checked(partial, sha256).replace(target)


def checked(path: Path, sha256: str) -> Path:
    """Return `path` if it has this digest; remove it otherwise.

    Raises:
        SourceError: it has another one.
    """
    found = sha256_of(path)
    if found != sha256:
        path.unlink()
        raise SourceError(f"what came has sha256 {found[:12]}..., not {sha256[:12]}...")
    return path


def _reason(error: Exception) -> str:
    """The innermost cause, without the objects around it."""
    while (inner := error.__cause__ or error.__context__) is not None and isinstance(inner, Exception):
        error = inner
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
