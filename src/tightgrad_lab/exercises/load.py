"""Reads a student's file, and says in words, with the line, what keeps it from running."""

import ast
import difflib
import io
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from tightgrad_lab.exercises import words
from tightgrad_lab.exercises.model import Exam
from tightgrad_lab.exercises.words import Words

OWN = "tightgrad_lab"
GRADER = {"__main__", "__import__", "importlib", "inspect", "gc", "ctypes", "builtins", "__builtins__", "__globals__"}
GRADER |= {"__closure__", "__subclasses__", "_getframe", "_current_frames", "f_back", "tb_frame", "exec", "eval"}
"""Names by which a program reaches the grader that runs it; no answer needs one. Teachers read the files."""
MODULE = "student"


class StudentError(Exception):
    """The file cannot be graded; carries what to say."""

    def __init__(self, words_: Words) -> None:
        super().__init__(words_.en)
        self.words = words_


@dataclass
class Student:
    """A student's file that has been run.

    Args:
        path: of the file; tracebacks name it.
        source: its text.
        module: what it defines.
    """

    path: Path
    source: str
    module: ModuleType
    tree: ast.Module = field(repr=False)

    def function(self, exam: Exam) -> Callable[..., Any]:
        """Return the function that the exercise asks for.

        Raises:
            StudentError: there is none, or the file uses what it may not.
        """
        self.refuse(exam.without)
        found = getattr(self.module, exam.function, None)
        if found is None:
            raise StudentError(self._missing(exam.function))
        if not callable(found):
            raise StudentError(words.NOT_A_FUNCTION.of(name=exam.function, kind=type(found).__name__))
        return found  # type: ignore[no-any-return]

    def place(self, name: str) -> Words:
        """Return the name of a function and its line."""
        line = self._lines().get(name)
        return Words(f"{name}, line {line}", f"{name}（第 {line} 行）") if line else Words(name, name)

    def line(self, number: int) -> str:
        """Return a line of the file without the space around it."""
        lines = self.source.splitlines()
        return lines[number - 1].strip() if 0 < number <= len(lines) else ""

    def _lines(self) -> dict[str, int]:
        kinds = (ast.FunctionDef, ast.ClassDef)
        return {node.name: node.lineno for node in ast.walk(self.tree) if isinstance(node, kinds)}

    def _missing(self, name: str) -> Words:
        near = difflib.get_close_matches(name, self._lines(), n=1, cutoff=0.5)
        if near:
            return words.MISSING_NEAR.of(name=name, near=near[0], line=self._lines()[near[0]])
        calls = (node.func for node in ast.walk(self.tree) if isinstance(node, ast.Call))
        prints = any(isinstance(one, ast.Name) and one.id == "print" for one in calls)
        return (words.PRINTS if prints else words.MISSING).of(name=name)

    def refuse(self, without: Collection[str]) -> None:
        """Look for what no answer may do, in the file and in those beside it that it imports.

        Raises:
            StudentError: it reaches into the grader, changes a library, or uses one of the names.
        """
        trees, seen = [self.tree], {self.path}
        while trees:
            tree = trees.pop()
            libraries = {(name.asname or name.name).split(".")[0] for node in ast.walk(tree) for name in _aliases(node)}
            for node in ast.walk(tree):
                _refuse(node, without, libraries)
                for name in _imported(node):  # what lies beside the file is the student's as well
                    beside = self.path.with_name(name.split(".")[0] + ".py")
                    if beside not in seen and beside.is_file():
                        seen.add(beside)
                        with suppress(ValueError, SyntaxError):  # importing it says so, with the line
                            trees.append(ast.parse(beside.read_text(encoding="utf-8-sig")))


def _refuse(node: ast.AST, without: Collection[str], libraries: set[str]) -> None:
    line = getattr(node, "lineno", 0)
    imported = _imported(node)
    used = {part for name in imported for part in name.split(".")}
    used |= {node.id} if isinstance(node, ast.Name) else set()
    used |= {node.attr} if isinstance(node, ast.Attribute) else set()
    used |= {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()  # of getattr
    for name in used:
        if name.split(".")[0] == OWN:
            raise StudentError(words.IMPORTS_GRADER.of(line=line, name=(imported or [name])[0]))
        if name in GRADER:
            raise StudentError(words.REACHES.of(line=line, name=name))
        if name in without:
            raise StudentError(words.WITHOUT.of(line=line, name=name))
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
        root: ast.AST = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in libraries:
            raise StudentError(words.PATCHES.of(line=line, name=ast.unparse(node)))


def _aliases(node: ast.AST) -> list[ast.alias]:
    return node.names if isinstance(node, ast.Import | ast.ImportFrom) else []


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def load(path: Path) -> Student:
    """Run a student's file as a module.

    Raises:
        StudentError: it is not Python, or running it fails.
    """
    try:
        source = path.read_text(encoding="utf-8-sig")
        tree = ast.parse(source, filename=str(path))
        code = compile(source, str(path), "exec")
    except UnicodeDecodeError as error:
        raise StudentError(words.UNREADABLE.of(reason=error)) from error
    except SyntaxError as error:
        text = (error.text or "").strip()
        raise StudentError(words.SYNTAX.of(line=error.lineno, reason=error.msg, text=text)) from error
    except ValueError as error:  # null bytes
        raise StudentError(words.UNREADABLE.of(reason=error)) from error
    student = Student(path, source, ModuleType(MODULE), tree)
    student.refuse(())  # before it runs: what it changes could hide it
    student.module.__file__ = str(path)
    sys.modules[MODULE] = student.module  # dataclasses look their module up
    try:
        with redirect_stdout(io.StringIO()):  # what it prints while it is loaded is for whoever runs it alone
            exec(code, student.module.__dict__)
    except (Exception, SystemExit) as error:
        raise StudentError(raised(error, student)) from error
    return student


def raised(error: BaseException, student: Student) -> Words:
    """Return what an exception of the student's program says, with the line of the file that it comes from."""
    if isinstance(error, threading.BrokenBarrierError):
        return words.WAITING
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename == str(student.path)]
    reason = " ".join(str(error).split()) or "-"
    kind = type(error).__name__
    if not frames:
        return words.RAISED_OUTSIDE.of(kind=kind, reason=reason)
    line = frames[-1].lineno or 0
    if isinstance(error, SystemExit):
        return words.EXITS.of(line=line)
    return words.RAISED.of(line=line, kind=kind, reason=reason[:300], text=student.line(line))
