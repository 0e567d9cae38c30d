"""Builds the notebooks: code from src/NAME.py, text from src/NAME.LANGUAGE.md, outputs from one run of the code.

`python examples/notebooks/build.py [NAME ...]` needs the extra `course`; without names it builds all. Cells of code
begin with `# %% name`; a line `@code name` in a text says where one stands. Both languages have the same code, so it is
run once, and only if it has changed.
"""

import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")
NAMES = ("clipping", "accumulation", "compression", "combination", "image", "language", "series")
_CELL = re.compile(r"^# %% (\w+)\n", re.MULTILINE)
_PLACE = re.compile(r"^@code (\w+)\n", re.MULTILINE)


def code_of(name):
    """Return the cells of code by their names."""
    _, *parts = _CELL.split((HERE / "src" / f"{name}.py").read_text(encoding="utf-8"))
    return {key: text.strip() for key, text in zip(parts[::2], parts[1::2], strict=True)}


def cells_of(name, language):
    """Return the cells of a notebook without outputs: (kind, id, text)."""
    code = code_of(name)
    first, *parts = _PLACE.split((HERE / "src" / f"{name}.{language}.md").read_text(encoding="utf-8"))
    if parts[::2] != list(code):
        raise SystemExit(f"{name}.{language}.md places {parts[::2]}, {name}.py has {list(code)}.")
    cells = [("markdown", "title", first.strip())]
    for key, text in zip(parts[::2], parts[1::2], strict=True):
        cells.append(("code", key, code[key]))
        if text.strip():
            cells.append(("markdown", f"after-{key}", text.strip()))
    return cells


def path_of(name, language):
    """Return where a notebook is kept; its number is its place in the course."""
    return HERE / language / f"{NAMES.index(name) + 1}-{name}.ipynb"


def notebook(name, language, outputs):
    """Return a notebook; `outputs` are those of its cells of code, by name."""
    cells = []
    for kind, key, text in cells_of(name, language):
        cell = {"cell_type": kind, "id": key.replace("_", "-"), "metadata": {}, "source": text}
        if kind == "code":
            number = sum(cell["cell_type"] == "code" for cell in cells) + 1
            cell |= {"execution_count": number, "outputs": outputs.get(key, [])}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def outputs_of(name):
    """Run the code in a fresh kernel on one thread; return the outputs of each cell by name."""
    import nbclient
    import nbformat

    os.environ |= {"OMP_NUM_THREADS": "1"}
    opened = nbformat.from_dict(notebook(name, "en", {}))
    nbclient.NotebookClient(opened, timeout=1800, kernel_name="python3").execute()
    code = [cell for cell in opened.cells if cell.cell_type == "code"]
    return {key: _whole(cell.outputs) for key, cell in zip(code_of(name), code, strict=True)}


def _whole(outputs):
    """Return outputs with printed text in one piece: a slow kernel sends it in several."""
    found = []
    for output in outputs:
        output = {key: value for key, value in output.items() if key != "transient"}
        if found and output["output_type"] == "stream" and found[-1].get("name") == output["name"]:
            found[-1]["text"] += output["text"]
        else:
            found.append(output)
    return found


def kept_outputs_of(name):
    """Return the stored outputs by cell if the notebook has the code of its source; else None."""
    import nbformat

    path, code = path_of(name, LANGUAGES[0]), code_of(name)
    if not path.exists():
        return None
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    if [cell.source for cell in cells] != list(code.values()):
        return None
    return {key: _whole(cell.outputs) for key, cell in zip(code, cells, strict=True)}


def main(names):
    """Build these, or all, in both languages."""
    import nbformat

    for name in names or NAMES:
        outputs = kept_outputs_of(name) or outputs_of(name)
        for language in LANGUAGES:
            built = nbformat.from_dict(notebook(name, language, outputs))
            nbformat.validate(built)
            path_of(name, language).parent.mkdir(exist_ok=True)
            nbformat.write(built, path_of(name, language))
            print(path_of(name, language))


if __name__ == "__main__":
    main(sys.argv[1:])
