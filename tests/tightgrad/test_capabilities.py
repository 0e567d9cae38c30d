"""What a method or a wrapper can do is asked of it, never told from its class or its id: others come from outside."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tightgrad as tg

SOURCE = Path(tg.__file__).parent
CLASSES = {"Dense", "OneFactorClipper", "MomentumCorrection", "Hierarchical", "EF21", "TwoShot", "PowerSGD", "Sign"}
ASKED_BY_OTHERS = {"reducers/hierarchical.py"}  # refuses to be inside of itself


def classes_asked_for(tree: ast.Module) -> Iterator[str]:
    """Yield the names of classes in calls of `isinstance`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            yield from (part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name))


def ids_asked_for(tree: ast.Module) -> Iterator[str]:
    """Yield comparisons of a card's id with a constant."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(part, ast.Constant) for part in node.comparators):
            text = ast.unparse(node)
            if ".card.id" in text:
                yield text


def found_in(text: str) -> list[str]:
    tree = ast.parse(text)
    named = [name for name in classes_asked_for(tree) if name in CLASSES or name.endswith("Adapter")]
    return [*named, *ids_asked_for(tree)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("isinstance(a, Dense)", ["Dense"]),
        ("isinstance(a, int | DDPAdapter)", ["DDPAdapter"]),
        ("a.card.id == 'dense'", ["a.card.id == 'dense'"]),
        ("isinstance(a, Reducer) and a.leaves_nothing", []),
    ],
)
def test_the_rule_sees_classes_and_ids(text, found):
    assert found_in(text) == found


def test_no_class_of_a_method_or_an_adapter_is_asked_for():
    files = [path for path in sorted(SOURCE.rglob("*.py")) if path.parent.name != "testing"]
    found = {str(path.relative_to(SOURCE)): found_in(path.read_text(encoding="utf-8")) for path in files}
    assert {name for name, what in found.items() if what} == ASKED_BY_OTHERS


def test_the_way_of_a_gradient_is_read_in_one_sitting():
    assert len((SOURCE / "pipeline" / "step.py").read_text(encoding="utf-8").splitlines()) < 200


def test_files_and_folders_are_small():
    files = sorted(path for package in (SOURCE, SOURCE.parent / "tightgrad_lab") for path in package.rglob("*.py"))
    assert [path for path in files if len(path.read_text(encoding="utf-8").splitlines()) >= 400] == []
    folders = [path.parent for path in files]
    assert [folder for folder in set(folders) if folders.count(folder) > 20] == []
