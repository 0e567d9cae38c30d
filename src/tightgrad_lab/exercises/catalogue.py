"""The exercises by number: their texts, files and graders."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from tightgrad_lab.errors import ArgumentError

if TYPE_CHECKING:
    from tightgrad_lab.exercises.model import Exam

HERE = Path(__file__).parent
PER_CHAPTER = 3
COUNT = 24
KINDS = ("compute", "find the bug", "build")
KINDS_ZH = ("计算", "找错", "实现")
PATH = (3, 6, 15, 12, 18, 9, 21, 23, 24)
"""The building path: from clipping a gradient to a codec of one's own."""
LANGUAGES = ("en", "zh")
Language = Literal["en", "zh"]
_TWO = re.compile(r"\[\[(.*?)\|\|(.*?)\]\]")
_LINE = re.compile(r"^(\s*)# ?(en|zh) (.*)\n", re.MULTILINE)


class Wrong(NamedTuple):
    """A wrong answer that people give: the solution with one passage replaced, and what the verdict says.

    Args:
        old: passage of the solution.
        new: what stands in its place.
        says: part of the English verdict.
    """

    old: str
    new: str
    says: str


@dataclass(frozen=True)
class Sheet:
    """One exercise.

    Args:
        number: from 1.
        name: of its files, such as 01_clip_by_hand.
        folder: with its texts and programs.
    """

    number: int
    name: str
    folder: Path

    @property
    def chapter(self) -> int:
        """The chapter of the book that it belongs to."""
        return (self.number - 1) // PER_CHAPTER + 1

    def kind(self, language: Language) -> str:
        """What is to be done: compute, find the bug, build."""
        return (KINDS if language == "en" else KINDS_ZH)[(self.number - 1) % PER_CHAPTER]

    def title(self, language: Language) -> str:
        """The heading of its text."""
        return self._text(language).partition("\n")[0].removeprefix("# ").strip()

    def task(self, language: Language) -> str:
        """What the student reads first, in Markdown."""
        return self._parts(language)[0]

    def hint(self, language: Language) -> str:
        """What helps whoever is stuck."""
        return self._parts(language)[1]

    def marking(self, language: Language) -> str:
        """What the teacher looks for."""
        return self._parts(language)[2]

    def starter(self, language: Language) -> str:
        """The file that the student completes."""
        return spoken((self.folder / "starter.py").read_text(encoding="utf-8"), language)

    def solution(self, language: Language) -> str:
        """A complete answer."""
        return spoken((self.folder / "solution.py").read_text(encoding="utf-8"), language)

    def exam(self) -> "Exam":
        """The grader; imports torch where the exercise needs it."""
        found: Exam = import_module(f"tightgrad_lab.exercises.{self.folder.name}.grader").EXAM
        return found

    def wrong(self) -> Sequence[Wrong]:
        """Wrong answers that people give."""
        found: Sequence[Wrong] = import_module(f"tightgrad_lab.exercises.{self.folder.name}.wrong").WRONG
        return found

    def _text(self, language: Language) -> str:
        return (self.folder / f"task.{language}.md").read_text(encoding="utf-8")

    def _parts(self, language: Language) -> tuple[str, str, str]:
        task, hint, marking = re.split(r"^## (?:Hint|提示|Marking|评分)\n", self._text(language), flags=re.MULTILINE)
        return task.strip(), hint.strip(), marking.strip()


def spoken(source: str, language: Language) -> str:
    """Return a program in one language: `[[en||zh]]` is chosen from, `# en` and `# zh` lines are comments in one."""
    chosen = _LINE.sub(lambda line: f"{line[1]}# {line[3]}\n" if line[2] == language else "", source)
    return _TWO.sub(lambda pair: pair[1 if language == "en" else 2], chosen)


@cache
def sheets() -> tuple[Sheet, ...]:
    """Every exercise, in order."""
    return tuple(_found())


def sheet(number: int) -> Sheet:
    """Return the exercise of a number.

    Raises:
        ArgumentError: there is none.
    """
    for one in sheets():
        if one.number == number:
            return one
    raise ArgumentError(f"There is no exercise {number}; choose 1 to {COUNT}, see `tightgrad exercises list`.")


def _found() -> Iterator[Sheet]:
    for folder in sorted(HERE.glob("ex[0-9][0-9]_*")):
        name = folder.name.removeprefix("ex")
        yield Sheet(int(name[:2]), name, folder)
