"""The notebooks run from top to bottom."""

import json
import os
from pathlib import Path

import pytest

from support.waiting import patience
from tightgrad_lab.cases import CASES

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_every_case_has_one() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(CASES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)
    for cell in cells:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), cell["id"], "exec")


@pytest.mark.slow
@pytest.mark.timeout(patience(600))
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_top_to_bottom(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a Jupyter kernel where there is one (extra `notebooks`); otherwise its cells run as one program."""
    source = Path(__file__).parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", str(source))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    try:
        import nbclient
        import nbformat
    except ImportError:
        _run_as_program(code)
        return
    opened = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(opened, timeout=int(patience(500)), kernel_name="python3").execute()
    printed = "".join(out.get("text", "") for cell in opened.cells for out in cell.get("outputs", []))
    assert "times fewer" in printed
    assert "relative error" in printed


def _run_as_program(code: list[str]) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-"], input="\n".join(code), env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "times fewer" in done.stdout
