"""Every public docstring begins with a sentence that stands alone, and every method shows a run of itself."""

import ast
import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tightgrad as tg
from tightgrad.plan.registry import method, methods

SOURCE = Path(tg.__file__).parent
PACKAGES = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
EXPORTED = sorted(name for name in set(tg.__all__) - {"__version__"} if not inspect.ismodule(getattr(tg, name)))

# What a function, method or property does, as an order.
_ORDERS = (
    "accumulate act add agree allow append apply approximate ask attach average begin bring broadcast build call "
    "carry catch change check choose clamp clear clip close coalesce collect combine compare compensate complete "
    "compute concatenate connect contract convert copy correct count create cut decide decode deliver describe divide "
    "draw drop encode end estimate exchange expect fill find finish flag flip flush follow forget format gather "
    "get give group hand hold index install issue join keep learn leave let limit list load log look make mark "
    "measure merge multiply name note offer open order orthonormalise overwrite pack pass pick prepare print put "
    "raise read rebuild receive record reduce refuse register release remember remove replace report rescale "
    "restore return rotate round run save say scale scatter select send serve set show shrink shuffle skip split "
    "stack start step stop store subtract sum swap take tell time transform turn undo unpack update use vote wait "
    "warn widen wrap write yield zero "
)
IMPERATIVES = frozenset(_ORDERS.split())
AUXILIARIES = {"is", "are", "was", "were", "has", "have", "does", "do", "can", "cannot", "must"}
THIRD_PERSON = {verb + ("es" if verb.endswith(("ch", "sh", "ss", "o")) else "s") for verb in IMPERATIVES}
THIRD_PERSON |= {"carries", "copies", "multiplies", "applies"}

Documented = ast.ClassDef | ast.FunctionDef


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Documented]]:
    """Yield the public classes and functions of a module or class, with their dotted names."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def fault(node: Documented) -> str | None:
    """Say what is wrong with the first line of a docstring; None if nothing is."""
    first = (ast.get_docstring(node) or "").split("\n")[0]
    words = re.findall(r"[A-Za-z][\w'-]*", re.sub(r"`[^`]*`", "code", first))
    if len(words) < 4:
        return f"has fewer than four words: {first!r}"
    start, *rest = (word.lower() for word in words)
    if isinstance(node, ast.ClassDef):
        return None if start in THIRD_PERSON or AUXILIARIES & {*rest} else f"has no verb: {first!r}"
    return None if start in IMPERATIVES else f"does not begin with a verb in the imperative: {first!r}"


def faults_of(path: Path) -> list[str]:
    """List the faulty public docstrings of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = ((name, fault(node)) for name, node in public(tree.body))
    return [f"{path.relative_to(SOURCE)}: {name} {said}" for name, said in found if said]


def exported_faults() -> list[str]:
    """List the faulty docstrings of what `tightgrad` itself exports, and of its public methods."""
    faults = []
    for name in EXPORTED:
        value = getattr(tg, name)
        path = Path(sys.modules[value.__module__].__file__ or "")
        (node,) = (node for found, node in public(ast.parse(path.read_text(encoding="utf-8")).body) if found == name)
        inner = public(node.body, f"{name}.") if isinstance(node, ast.ClassDef) else ()
        faults += [f"{found} {said}" for found, one in [(name, node), *inner] if (said := fault(one))]
    return faults


def faults_in(place: str) -> list[str]:
    """List the faulty docstrings of a package, or of what `tightgrad` itself exports."""
    if place == "exported":
        return exported_faults()
    return [line for path in sorted((SOURCE / place).rglob("*.py")) for line in faults_of(path)]


def written(source: str) -> Documented:
    (node,) = ast.parse(source).body
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    return node


@pytest.mark.parametrize(
    ("source", "is_good"),
    [
        ('def f():\n    """Return the widest scope of all choices."""', True),
        ('def f():\n    """The widest."""', False),
        ('def f():\n    """The widest scope of all choices."""', False),
        ('def f():\n    """Return `a_long name of three words`."""', False),
        ("def f():\n    pass", False),
        ('class C:\n    """Sends each element as a half-precision number."""', True),
        ('class C:\n    """Raised when a setting is out of its bounds."""', True),
        ('class C:\n    """Half-precision values, signs and steps."""', False),
    ],
)
def test_the_rule_tells_a_sentence_from_a_riddle(source, is_good):
    assert (fault(written(source)) is None) is is_good


@pytest.mark.parametrize("place", [*PACKAGES, "exported"])
def test_first_lines_are_sentences(place):
    faults = faults_in(place)
    assert not faults, "\n".join(faults)


def examples(value: type) -> int:
    """Count the statements that doctest runs in an object's own docstring, under `Examples:`; one prints a result."""
    module = importlib.import_module(value.__module__)
    (test,) = doctest.DocTestFinder(recurse=False).find(value, value.__name__, module)
    assert "Examples:\n" in (inspect.getdoc(value) or ""), f"{value.__name__} has no section `Examples:`"
    assert any(example.want for example in test.examples), f"the example of {value.__name__} prints no result"
    return len(test.examples)


# Their examples run in test_public.py, as those of all modules.
@pytest.mark.parametrize("name", [name for name in methods() if method(name).__module__.startswith("tightgrad.")])
def test_every_method_has_an_example_with_a_result(name):
    assert examples(method(name)) >= 2


@pytest.mark.parametrize("name", [name for name in EXPORTED if inspect.isfunction(getattr(tg, name))])
def test_every_exported_function_has_an_example(name):
    assert examples(getattr(tg, name)) >= 2


def test_google_style_sections_are_in_the_plural():
    singular = re.compile(r"^\s*(Example|Argument|Return|Raise|Attribute):$", re.MULTILINE)
    found = [path for path in sorted(SOURCE.rglob("*.py")) if singular.search(path.read_text(encoding="utf-8"))]
    assert not found
