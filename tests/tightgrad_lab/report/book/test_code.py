"""Every block of code in the book runs as it stands, twice in a row, and prints what it promises."""

import ast
import re
import subprocess
import sys

import pytest

from support.waiting import patience
from tightgrad_lab.report.book import chapters

LANGUAGES = ("en", "zh")
NAMES = tuple(f"chapter{number}" for number in range(1, 9))
OPTIONAL = ("tensorflow", "optax", "jax", "accelerate", "transformers", "lightning")
TWICE = """
import sys
program = compile(sys.stdin.read(), "block", "exec")
names = {"__name__": "__main__"}
for _ in range(2):
    exec(program, names)
"""


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


@pytest.mark.parametrize(("name", "place"), ALL)
def test_it_runs_twice_and_prints_what_it_promises(name: str, place: int) -> None:
    program = blocks("zh", name)[place]
    for package in OPTIONAL:
        if re.search(rf"^\s*(import|from) {package}\b", program, re.MULTILINE):
            pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, "-c", TWICE], input=program, capture_output=True, text=True, check=False, timeout=patience(200)
    )
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^print\(.*\)\s+# (.+)$", program, re.MULTILINE)
    assert promised
    assert done.stdout.splitlines() == promised * 2
