"""The troubleshooting page: every error and warning that the library can raise, read from its code."""

import ast
import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tightgrad
from tightgrad.core import errors

ROOT = Path(tightgrad.__file__).parent
WARNING = "TightGradWarning"


@dataclass(frozen=True, order=True)
class Message:
    """A message of the library: its class, the file and line that raise it, and its text.

    What is filled in when it is raised stands in braces.
    """

    kind: str
    file: str
    line: int
    text: str


def kinds() -> list[str]:
    """Return the names of the error classes that users meet, in the order of the error tree, and the warning's."""
    classes = [name for name, value in vars(errors).items() if inspect.isclass(value)]
    return [*(name for name in classes if name != "TightGradError"), WARNING]


@cache
def messages() -> tuple[Message, ...]:
    """Return all messages whose text stands in the code, by class, file, line and text."""
    paths = sorted(ROOT.rglob("*.py"))
    nodes = {path: [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))] for path in paths}
    said = _texts_by_name(nodes.values())
    found = {message for path, own in nodes.items() for message in _in_file(path, own, said)}
    order = {kind: index for index, kind in enumerate(kinds())}
    return tuple(sorted(found, key=lambda found: (order[found.kind], found.file, found.line, found.text)))


def _texts_by_name(files: Iterable[Sequence[ast.AST]]) -> dict[str, str]:
    """Return what functions that make a message return, and what constants hold, by name."""
    found: dict[str, str] = {}
    for node in (node for nodes in files for node in nodes):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = _text(node.value, {})
        if isinstance(node, ast.FunctionDef):
            returned = [
                _text(inner.value, {}) for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value
            ]
            found[node.name] = max([found.get(node.name, ""), *returned], key=len)
    return {name: text for name, text in found.items() if _is_sentence(text)}


def _in_file(path: Path, nodes: Sequence[ast.AST], said: Mapping[str, str]) -> Iterator[Message]:
    known, file = set(kinds()), path.relative_to(ROOT.parent).as_posix()
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("refuses"):  # what a plan's parts say of others
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value and _is_sentence(text := _text(inner.value, said)):
                    yield Message("IncompatiblePlanError", file, inner.lineno, f"{text}.")
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        kind = WARNING if name == "warn" else name
        if kind not in known:
            continue
        text = _text(node.args[0], said)
        if _is_sentence(text):
            yield Message(kind, file, node.lineno, text)
        elif isinstance(node.args[0], ast.Attribute):  # kept until it is raised: the constants of its file
            for constant in _constants(nodes[0], said):
                yield Message(kind, file, node.lineno, constant)


def _constants(tree: ast.AST, said: Mapping[str, str]) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in said:
            yield said[node.targets[0].id]


def _is_sentence(text: str) -> bool:
    return text.count(" ") > 2


def _text(node: ast.expr, said: Mapping[str, str]) -> str:
    """Return a message's text, what is filled in as it stands in the code; empty if it cannot be told."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_part(value, said) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, said) + _text(node.right, said)
    if isinstance(node, ast.Call):
        return said.get(getattr(node.func, "attr", ""), "") or _text(node.func, said)
    if isinstance(node, ast.Name):
        return said.get(node.id, "")
    return ""


def _part(node: ast.expr, said: Mapping[str, str]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.FormattedValue)
    inner = node.value
    if isinstance(inner, ast.Name) and inner.id.isupper() and inner.id in said:  # words of several messages
        return said[inner.id]
    if isinstance(inner, ast.IfExp):  # both ways are literals more often than not
        return _text(inner.body, {}) or _text(inner.orelse, {}) or "{...}"
    return "{" + _name(inner) + "}"


def _name(node: ast.expr) -> str:
    """A short name for what is filled in."""
    while isinstance(node, ast.Call | ast.Subscript | ast.Starred):
        arguments = node.args if isinstance(node, ast.Call) else []
        node = arguments[0] if arguments else node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_")
    return node.id.strip("_") if isinstance(node, ast.Name) else "..."


def page() -> str:
    """Return the page in Markdown."""
    lines = [
        *("---", "search: {boost: 2}", "hide: [toc]", "---", ""),  # hundreds of headings: messages are found by search
        "# Troubleshooting",
        "",
        "Every error and warning that TightGrad raises on purpose, taken from its code. Paste the message, or a few",
        "words of it, into the search; names in braces stand for what is filled in. Each message says what failed and",
        "what to write instead. All errors derive from `tightgrad.TightGradError`: "
        + ", ".join(f"[{kind}](#{kind.lower()})" for kind in kinds())
        + ".",
        "",
    ]
    everything = messages()
    for kind in kinds():
        own = [message for message in everything if message.kind == kind]
        found = getattr(tightgrad, kind, None) or getattr(importlib.import_module("tightgrad.core.errors"), kind)
        lines += [f"## {kind}", "", inspect.getdoc(found) or "", ""]
        for message in own:
            lines += _section(message)
    return "\n".join(lines)


def _section(message: Message) -> list[str]:
    """A message's first sentence is a heading, for which a search looks first."""
    first, dot, rest = " ".join(message.text.split()).partition(". ")
    return [f"### {_escaped(first)}{dot.strip()}", "", f"{_escaped(rest)} <small>{message.file}</small>".strip(), ""]


def _escaped(text: str) -> str:
    for mark in "\\`*_<>[]|{}#":
        text = text.replace(mark, "\\" + mark)
    return text
