"""Members of archives as bytes. Nothing is unpacked to disk, so no path in an archive can lead anywhere."""

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from tightgrad_lab.fetch.dataset import SourceError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_NBYTES = 60


def members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Members of a .tar.gz, .tgz or .deb by name; in a tar, names are compared without a leading "./".

    Raises:
        SourceError: one lacks, or the archive is damaged.
    """
    try:
        if path.suffix == ".deb":
            return _of_tar(io.BytesIO(_data_of_deb(path)), names)
        with path.open("rb") as file:
            return _of_tar(file, names)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{path.name} is damaged ({error})") from error


def zip_member(packed: bytes, name: str) -> bytes:
    """One member of a zip."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        return archive.read(name)


def _of_tar(file: io.BufferedIOBase, names: Sequence[str]) -> dict[str, bytes]:
    wanted, found = set(names), {}
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name in wanted and member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                found[name] = content.read()
            if len(found) == len(wanted):
                return found
    raise SourceError(f"it lacks {', '.join(sorted(wanted - found.keys()))}")


def _data_of_deb(path: Path) -> bytes:
    """The member data.tar.* of an ar archive."""
    content = path.read_bytes()
    if not content.startswith(_AR_MAGIC):
        raise SourceError(f"{path.name} is no Debian package")
    place = len(_AR_MAGIC)
    while place + _AR_HEADER_NBYTES <= len(content):
        header = content[place : place + _AR_HEADER_NBYTES]
        nbytes = int(header[48:58])
        place += _AR_HEADER_NBYTES
        if header[:16].decode("ascii").strip().startswith("data.tar"):
            return content[place : place + nbytes]
        place += nbytes + nbytes % 2
    raise SourceError(f"{path.name} has no data.tar")
