"""The notebooks of the course: one source of code, text in two languages, outputs of a run that went through."""

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from support.programs import run_program
from support.waiting import patience
from tightgrad_lab.cases import CASES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "notebooks"
MOST_CELLS = 25
PREDICT, ANSWER = {"en": "**Predict:**", "zh": "**先猜一猜：**"}, {"en": "**Answer:**", "zh": "**答案：**"}


def builder() -> Any:
    spec = importlib.util.spec_from_file_location("build_notebooks", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = builder()
EVERY = pytest.mark.parametrize(("name", "language"), [(n, x) for n in BUILD.NAMES for x in BUILD.LANGUAGES])


def kept(name: str, language: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(BUILD.path_of(name, language).read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells]


def code(name: str, language: str) -> list[dict[str, Any]]:
    return [cell for cell in kept(name, language) if cell["cell_type"] == "code"]


def printed(name: str, language: str) -> str:
    outputs = [output for cell in code(name, language) for output in cell["outputs"]]
    return "".join("".join(output.get("text", "")) for output in outputs)


def text(name: str, language: str) -> str:
    return "\n".join(cell["source"] for cell in kept(name, language) if cell["cell_type"] == "markdown")


def test_there_is_one_for_each_technique_for_each_case_and_for_the_combination() -> None:
    assert {path.relative_to(FOLDER) for path in FOLDER.rglob("*.ipynb")} == {
        BUILD.path_of(name, language).relative_to(FOLDER) for name in BUILD.NAMES for language in BUILD.LANGUAGES
    }
    sources = "".join(path.read_text(encoding="utf-8") for path in (FOLDER / "src").glob("*.py"))
    assert [case for case in CASES if f'load_case("{case}")' not in sources] == []


@EVERY
def test_it_is_as_its_source_says(name: str, language: str) -> None:
    """Run `python examples/notebooks/build.py` after a change of the source."""
    found = [(cell["cell_type"], cell["source"]) for cell in kept(name, language)]
    assert found == [(kind, text) for kind, _, text in BUILD.cells_of(name, language)]
    assert len(found) <= MOST_CELLS


@pytest.mark.parametrize("name", BUILD.NAMES)
def test_both_languages_have_the_same_code_and_the_same_outputs(name: str) -> None:
    assert code(name, "en") == code(name, "zh")
    assert not re.search("[\u4e00-\u9fff]", text(name, "en"))


@EVERY
def test_every_cell_was_run_without_error_or_warning(name: str, language: str) -> None:
    cells = code(name, language)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    assert any("image/png" in output.get("data", {}) for output in outputs)


@EVERY
def test_it_holds_tightgrad_against_the_loop_by_hand(name: str, language: str) -> None:
    lines = "\n".join(cell["source"] for cell in code(name, language))
    assert "tg.attach(" in lines
    assert re.search(r"^assert difference < 1e-6$", lines, re.MULTILINE)


@EVERY
def test_a_question_stands_before_each_answer(name: str, language: str) -> None:
    order = re.findall(f"{re.escape(PREDICT[language])}|{re.escape(ANSWER[language])}", text(name, language))
    assert order.count(ANSWER[language]) >= 3
    assert order == [PREDICT[language], ANSWER[language]] * (len(order) // 2)


@EVERY
def test_numbers_in_the_text_were_printed(name: str, language: str) -> None:
    """Three decimals and more: numbers that only a run can give."""
    told = text(name, language).split({"en": "## Go on", "zh": "## 接着试"}[language])[0]
    quoted = set(re.findall(r"(?<![\d.:])\d+\.\d{3}(?!\d)", told))
    assert {number for number in quoted if number not in printed(name, language)} == set()


@EVERY
def test_it_cites_its_sources(name: str, language: str) -> None:
    first = kept(name, language)[0]["source"]
    assert "arxiv.org/abs" in first or "Neural Computation" in first


def run_as_program(name: str, where: Path) -> str:
    """What the code prints, outside of a notebook."""
    settings = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    code = (FOLDER / "src" / f"{name}.py").read_text(encoding="utf-8")
    done = run_program(code, where, {**os.environ, **settings}, seconds=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr[-3000:]
    return done.stdout


def test_the_quickest_runs_from_top_to_bottom(tmp_path: Path) -> None:
    assert "wire_bytes" in run_as_program("compression", tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(patience(1200))
@pytest.mark.parametrize("name", BUILD.NAMES)
def test_it_runs_and_a_second_time_with_the_same_result(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a Jupyter kernel where there is one (extra `course`); otherwise its cells run as one program."""
    if importlib.util.find_spec("nbclient") is None:
        assert run_as_program(name, tmp_path) == run_as_program(name, tmp_path)
        return
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    assert BUILD.outputs_of(name) == BUILD.outputs_of(name)
