"""Packages with entry points, laid down as an installer does: a module, and a dist-info folder beside it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from support.programs import run_program

# A codec that a package brings: `Cast` under another id.
CODEC = """
    from dataclasses import dataclass, replace
    import tightgrad as tg

    @dataclass(frozen=True)
    class Third(tg.codecs.Cast):
        card = replace(tg.codecs.Cast.card, id={id!r}, summary="from another package")
"""


def codec(method_id: str) -> str:
    """Source of a module with a codec `Third` of this id."""
    return textwrap.dedent(CODEC).format(id=method_id)


def install(folder: Path, name: str, source: str, points: str | None = None) -> None:
    """Lay a distribution down whose module has its name; `points` are lines of the group, by default `name:Third`."""
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tightgrad.methods]\n{points or f'{name} = {name}:Third'}\n")


def run_forked(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with the folder on the path, in a process that has imported tightgrad already."""
    return run_program(textwrap.dedent(code), folder, os.environ)


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with the folder on the path, in a process that has imported nothing."""
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
