"""Where reveal.js lies: inside the wheel of sphinx-revealjs, of which nothing else is used."""

import shutil
from importlib.util import find_spec
from pathlib import Path

from tightgrad_lab.report.errors import ReportError

PACKAGE = "sphinx_revealjs"
FILES = {"dist/reveal.js": "reveal.js", "dist/reveal.css": "reveal.css", "LICENSE": "LICENSE-reveal.txt"}
"""What a deck needs of reveal.js, and what it is called beside it."""


def copy_reveal(out: Path) -> None:
    """Copy reveal.js into a folder.

    Raises:
        ReportError: its package is not installed, or lays its files out differently.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ReportError("The slides need reveal.js, which comes with sphinx-revealjs: pip install 'tightgrad[lab]'.")
    folder = Path(spec.submodule_search_locations[0]) / "_static" / "revealjs"
    for name, target in FILES.items():
        if not (folder / name).is_file():
            raise ReportError(f"There is no {folder / name}; install a sphinx-revealjs that has it, such as 3.2.1.")
        shutil.copyfile(folder / name, out / target)
