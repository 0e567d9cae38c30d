"""The page of examples, out of their own docstrings: what each shows, how it is run, and what it printed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEAD = """# Examples

Each file of `examples/` runs as it is on two CPU cores, from the repository's folder. The tests run every command below
and compare what it prints; times and last digits differ between machines. The data come with `pip install '.[lab]'`;
the integrations need their framework.
"""


@dataclass(frozen=True)
class Session:
    """One command of an example.

    Args:
        command: as it is typed.
        expected: the last lines that it prints.
    """

    command: str
    expected: tuple[str, ...]


def scripts(folder: Path) -> list[Path]:
    """Return the examples below `folder`, without the notebooks and the corpus of the audit."""
    first = folder / "nanogpt.py"
    return [first, *sorted({*folder.glob("*.*"), *folder.glob("integrations/*.py")} - {first})]


def text_of(script: Path) -> str:
    """Return an example's docstring; for a shell script, the comment at its beginning."""
    text = script.read_text(encoding="utf-8")
    if script.suffix == ".py":
        return text.split('"""')[1].strip()
    comment = text.split("\n\n")[0].splitlines()[1:]
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in comment if not line.startswith("#SBATCH"))


def sessions(script: Path) -> Iterator[Session]:
    """Yield the commands of a docstring: lines that begin with `$ `, each with the lines below, up to an empty one."""
    for found in re.finditer(r"^\$ (.+)\n((?:(?!\$ ).+\n?)*)", text_of(script) + "\n", re.MULTILINE):
        yield Session(found[1], tuple(found[2].splitlines()))


def page(folder: Path) -> str:
    """Write the page."""
    return HEAD + "".join(_section(script, folder.parent) for script in scripts(folder))


def _section(script: Path, root: Path) -> str:
    name = script.relative_to(root).as_posix()
    prose, _, shown = text_of(script).partition("\n$ ")
    loop = marked_loop(script)
    code = f"```python\n{loop}\n```\n\n" if loop else ""
    return f"\n## `{name}`\n\n{prose.strip()}\n\n{code}```console\n$ {shown.strip()}\n```\n"


def marked_loop(script: Path) -> str:
    """Return an example's loop, from `tg.attach` to the next empty line, if its lines are marked; else nothing."""
    found = re.search(r"^[^\n]*\btg\.attach\(.*?(?=^\n)", script.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return found[0].rstrip() if found and "# 3" in found[0] else ""
