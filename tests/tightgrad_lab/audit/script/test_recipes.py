"""Recipes that are right and unlike a plain loop are not accused of anything."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import support.audits
from support.waiting import patience

SCRIPT = Path(__file__).parent / "recipes.py"
NAMES = [
    line.removeprefix("def ").removesuffix("():")
    for line in SCRIPT.read_text(encoding="utf-8").splitlines()
    if line.startswith("def ") and line.endswith("():")
]


@pytest.fixture(scope="module")
def remarks() -> dict[str, list[dict[str, Any]]]:
    command = [sys.executable, support.audits.__file__, str(SCRIPT), *(f"{name}:1" for name in NAMES)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=patience(300), check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_that_is_right_is_not_accused(name: str, remarks: dict[str, list[dict[str, Any]]]) -> None:
    assert [one["cause"] for one in remarks[name] if one["wrong"]] == []
