"""Recipes that are right and unlike a plain loop are not accused of anything."""

from pathlib import Path

import pytest

from support.audits import Remarks, audited

SCRIPT = Path(__file__).parent / "recipes.py"
NAMES = [
    line.removeprefix("def ").removesuffix("():")
    for line in SCRIPT.read_text(encoding="utf-8").splitlines()
    if line.startswith("def ") and line.endswith("():")
]


@pytest.fixture(scope="module")
def remarks() -> Remarks:
    return audited(SCRIPT, dict.fromkeys(NAMES, 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_that_is_right_is_not_accused(name: str, remarks: Remarks) -> None:
    assert [one["cause"] for one in remarks[name] if one["wrong"]] == []
