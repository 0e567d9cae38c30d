"""Every block of code in the book runs as it stands, twice in a row, and prints what it promises."""

import ast
import functools
import importlib.util
import json
import os
import re
import tempfile
from pathlib import Path

import pytest

from support.programs import run_program
from tightgrad_lab.report.book import chapters

LANGUAGES = ("en", "zh")
NAMES = tuple(f"chapter{number}" for number in range(1, 9))
OPTIONAL = ("tensorflow", "optax", "jax", "accelerate", "transformers", "lightning")
TWICE = """
import contextlib, io, json, traceback
for program in {programs!r}:
    names, said, error = {"__name__": "__main__"}, io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(said):
            for _ in range(2):
                exec(compile(program, "block", "exec"), names)
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps([said.getvalue(), error]))
"""
"""Runs each program of a list twice. One process runs a chapter: starting one takes longer than most programs."""


def blocks(language: str, name: str) -> list[str]:
    chapter = chapters.read(language, name)
    text = "\n".join([chapter.intro, *(section.source for section in chapter.sections), chapter.closing])
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class _WithoutWords(ast.NodeTransformer):
    """Drops docstrings and the text of messages."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node


ALL = [(name, place) for name in NAMES for place in range(len(blocks("en", name)))]


@pytest.mark.parametrize(("name", "place"), ALL)
def test_both_languages_show_the_same_program(name: str, place: int) -> None:
    programs = [ast.dump(_WithoutWords().visit(ast.parse(blocks(language, name)[place]))) for language in LANGUAGES]
    assert programs[0] == programs[1]
    assert len(blocks("en", name)) == len(blocks("zh", name))


def missing(program: str) -> list[str]:
    """Optional packages that a program imports and that are not installed."""
    wanted = [name for name in OPTIONAL if re.search(rf"^\s*(import|from) {name}\b", program, re.MULTILINE)]
    return [name for name in wanted if importlib.util.find_spec(name) is None]


@functools.cache
def run_chapter(name: str) -> dict[int, tuple[str, str]]:
    """What each block of a chapter printed, and the traceback if it failed."""
    programs = {place: one for place, one in enumerate(blocks("zh", name)) if not missing(one)}
    source = TWICE.replace("{programs!r}", repr(list(programs.values())))
    with tempfile.TemporaryDirectory() as folder:
        done = run_program(source, Path(folder), os.environ)
    assert done.returncode == 0, done.stderr
    ended = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {place: (said, error) for place, (said, error) in zip(programs, ended, strict=True)}


@pytest.mark.parametrize(("name", "place"), ALL)
def test_it_runs_twice_and_prints_what_it_promises(name: str, place: int) -> None:
    program = blocks("zh", name)[place]
    if missing(program):
        pytest.skip(f"needs {', '.join(missing(program))}")
    said, error = run_chapter(name)[place]
    assert not error, error
    promised = re.findall(r"^print\(.*\)\s+# (.+)$", program, re.MULTILINE)
    assert promised
    assert said.splitlines() == promised * 2
