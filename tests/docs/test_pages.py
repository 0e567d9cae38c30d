"""The docs: their code runs, their commands exist, their generated pages are whole, their links lead somewhere."""

import ast
import functools
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import typer.main

from support.programs import run_program
from support.waiting import patience
from tightgrad.plan.registry import cards, method
from tightgrad_lab.cli.app import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "decisions")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DOCS.parent / "src")}
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PROMISED = re.compile(r"^print\((.*)\)\s{2,}# (.+)$", re.MULTILINE)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Title and code of the blocks of a language."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(title, code) for kind, title, code in found if kind == language]


@functools.cache
def generated() -> Mapping[str, str]:
    """The pages that are made when the site is built, by their names."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return MappingProxyType(module.pages())


def run(code: str, where: Path, ranks: int | None = None) -> str:
    done = run_program(code, where, ENVIRONMENT, ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_torchrun(code: str, where: Path) -> str:
    (where / "script.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"],
        cwd=where,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(150),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def slow_in_chinese(page: Path, *more: str) -> Any:
    """The quick start's programs run in English in every run of the tests."""
    return pytest.param(page, *more, marks=pytest.mark.slow if page == DOCS / "zh" / "index.md" else ())


def without_words(code: str) -> str:
    """What a program does: its syntax without comments and texts."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
        elif isinstance(node, ast.JoinedStr):
            node.values = [one for one in node.values if isinstance(one, ast.FormattedValue)]
    return ast.dump(tree)


def test_the_quick_start_in_chinese_has_the_same_programs() -> None:
    english, chinese = (
        [without_words(code) for _, code in blocks(DOCS / name, "python")] for name in ("index.md", "zh/index.md")
    )
    assert chinese
    assert all(program in english for program in chinese)


@pytest.mark.parametrize(
    "page",
    [slow_in_chinese(page) for page in PAGES if any(not title for title, _ in blocks(page, "python"))],
    ids=lambda page: page.stem,
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    code = "\n".join(code for title, code in blocks(page, "python") if not title)
    printed = run(code, tmp_path).splitlines()
    for _, promised in PROMISED.findall(code):
        assert promised.strip() in printed


# Titles with a folder are files of a package, which test_own_codec.py installs.
SCRIPTS = [(page, title) for page in PAGES for title, _ in blocks(page, "python") if title and "/" not in title]


@functools.cache
def under_two_ranks(page: Path, title: str) -> str:
    """What a script prints when it is told what torchrun would tell it, which imports torch three times."""
    with tempfile.TemporaryDirectory() as folder:
        return run(dict(blocks(page, "python"))[title], Path(folder), ranks=2)


@pytest.mark.parametrize(
    ("page", "title"), [slow_in_chinese(*script) for script in SCRIPTS], ids=[title for _, title in SCRIPTS]
)
def test_scripts_run_under_two_ranks(page: Path, title: str) -> None:
    started = [line for _, text in blocks(page, "bash") for line in text.splitlines() if title in line]
    assert started == [f"torchrun --nproc-per-node 2 {title}"]
    assert under_two_ranks(page, title).strip()


@pytest.mark.slow
def test_torchrun_runs_a_script(tmp_path: Path) -> None:
    assert run_torchrun(dict(blocks(DOCS / "index.md", "python"))["train_ddp.py"], tmp_path).strip()


def test_torchrun_tells_a_script_what_run_program_does(tmp_path: Path) -> None:
    named = ("RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_USE", "TORCHELASTIC_RESTART")
    told = f"import os\nprint(*sorted(f'{{k}}={{v}}' for k, v in os.environ.items() if any(n in k for n in {named})))"
    (tmp_path / "told.py").write_text(told, encoding="utf-8")
    torchrun = "import torch.distributed.run as it\nit.main(['--standalone', '--nproc-per-node', '2', 'told.py'])"
    lines = [run(torchrun, tmp_path), run(told, tmp_path, ranks=2)]
    found = [sorted(re.sub(r"(MASTER_\w+)=\S+", r"\1", one).splitlines()) for one in lines]
    assert len(found[0]) == 2
    assert all("RANK=0 " in first and "MASTER_PORT" in first for first, _ in found)
    assert found[0] == found[1]


def test_nanogpts_loop_trains_the_same_weights_before_and_after() -> None:
    page = DOCS / "coming-from-your-loop.md"
    before, after = (sorted(under_two_ranks(page, f"gpt_{when}.py").split("\n")) for when in ("before", "after"))
    assert before == after
    assert before[-1].split(": ")[1] == before[-2].split(": ")[1], "ranks have the same weights"


def test_every_command_of_the_docs_exists() -> None:
    verbs: Any = typer.main.get_command(app)
    lines = [line for page in PAGES for _, text in blocks(page, "bash") for line in text.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("tightgrad ")]
    assert len(commands) > 10
    for _, verb, *arguments in commands:
        command = verbs.commands[verb]
        if arguments and verb == "bench":
            command, arguments = command.commands[arguments[0]], arguments[1:]
        command.make_context(verb, arguments)


def test_every_method_has_a_page_that_names_its_class() -> None:
    pages = generated()
    for card in cards():
        page = pages[f"methods/{card.id}.md"]
        assert card.use_when in page
        assert card.avoid_when in page
        name = re.search(r"^::: (\S+)$", page, re.MULTILINE)
        assert name is not None
        package, _, attribute = name[1].rpartition(".")
        assert getattr(importlib.import_module(package), attribute) is method(card.id)


def test_the_companion_has_every_heading_in_both_languages() -> None:
    page = generated()["course.md"]
    for chinese, english in (
        ("梯度裁剪的基本概念", "Basic concepts of gradient clipping"),
        ("梯度压缩的实现方法", "How gradient compression is implemented"),
    ):
        assert chinese in page
        assert english in page
    assert page.count("tightgrad lab") > 15


def test_links_between_pages_lead_somewhere() -> None:
    texts = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in PAGES} | {**generated()}
    known = texts.keys() | {
        path.relative_to(DOCS).as_posix() for kind in ("*.md", "*.svg") for path in DOCS.rglob(kind)
    }
    for name, text in texts.items():
        for target in re.findall(r"\]\((?!https?://)([^)#\s]+)", text):
            place = (DOCS / name).parent / target
            assert place.resolve().relative_to(DOCS.resolve()).as_posix() in known, f"{name}: {target}"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=DOCS.parent,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(150),
    )
    assert done.returncode == 0, done.stderr[-4000:]
    pages = list((tmp_path / "site").rglob("index.html"))
    assert len(pages) > 40
    everything = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert "attach" in everything
