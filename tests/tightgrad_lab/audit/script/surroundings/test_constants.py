"""Numbers in a script's text are replaced where it assigns them for itself, and nowhere else."""

import traceback
from typing import Any

import pytest

from tightgrad_lab.audit.script.settings import parse_shrink
from tightgrad_lab.audit.script.surroundings.constants import compiled
from tightgrad_lab.errors import ArgumentError

SCRIPT = '''"""A script."""
from __future__ import annotations
B, (T, K) = 64, (1024, 8)
total = size = 524288
steps: int = 1000
name = "large"
if total > 10:
    width = 4096
for layers in (1,):
    depth = layers * 12
class Model:
    B = 7
def own():
    B = 9
    return B
derived = B * T
fails = lambda: 1 / 0
'''


def run(**values: object) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compiled(SCRIPT, "train.py", values), names)
    return names


def test_every_way_to_assign_is_found() -> None:
    found = run(B=2, K=3, size=5, steps=6, name="tiny", width=None, depth=[1, 2])
    assert (found["B"], found["T"], found["K"]) == (2, 1024, 3)
    assert (found["total"], found["size"]) == (5, 5)  # one value, two names
    assert (found["steps"], found["name"], found["depth"]) == (6, "tiny", [1, 2])
    assert "width" not in found  # 5 is not over 10
    assert found["derived"] == 2 * 1024


def test_functions_and_classes_keep_their_own() -> None:
    found = run(B=2)
    assert found["own"]() == 9
    assert found["Model"].B == 7


def test_lines_stay_where_they_are() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        run(B=2)["fails"]()
    assert traceback.extract_tb(error.value.__traceback__)[-1].lineno == 17


def test_a_name_that_is_not_assigned_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"train\.py does not assign batch, lr outside its functions and classes"):
        run(B=2, lr=1, batch=2)


def test_a_module_without_a_dot_has_names_and_a_dot_a_class() -> None:
    assert parse_shrink("__main__:B=4,T=32") == ("__main__", "", {"B": 4, "T": 32})
    assert parse_shrink("config:name=x") == ("config", "", {"name": "x"})
    assert parse_shrink("a.model.GPT:n=1") == ("a.model", "GPT", {"n": 1})
    for text in (":B=4", "__main__", "__main__.:B=4", ".Model:n=1", "__main__:B"):
        with pytest.raises(ArgumentError, match="write it like"):
            parse_shrink(text)
