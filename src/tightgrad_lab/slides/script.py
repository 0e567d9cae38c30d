"""Reads what the teacher says: `text/LANGUAGE.md`, a lesson under each `#` and a slide under each `##`.

A slide's heading is its name and its minutes, as in `## 1.1 points 5`. Lines that begin with `- ` are the points shown
on it; the paragraphs are the speaker's notes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tightgrad_lab.report.errors import ReportError

HERE = Path(__file__).parent / "text"
_HEADING = re.compile(r"## (.+) (\d+)")


@dataclass(frozen=True, slots=True)
class Spoken:
    """What is said on a slide.

    Args:
        name: of the slide, such as "title" or "1.1 points".
        lesson: from 1.
        starts: minutes of the lesson that have passed.
        minutes: that the slide takes.
        points: that it shows.
        notes: paragraphs for the speaker.
    """

    name: str
    lesson: int
    starts: int
    minutes: int
    points: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lesson:
    """A lesson: its title and its slides in order."""

    title: str
    slides: tuple[Spoken, ...]

    @property
    def minutes(self) -> int:
        """The minutes of all its slides."""
        return sum(one.minutes for one in self.slides)


def lessons(language: str) -> tuple[Lesson, ...]:
    """Read the lessons of a language.

    Raises:
        ReportError: a heading has no minutes.
    """
    path = HERE / f"{language}.md"
    found = []
    for number, text in enumerate(re.split(r"^# ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:], 1):
        title, _, body = text.partition("\n")
        found.append(Lesson(title.strip(), tuple(_slides(path, number, body))))
    return tuple(found)


def _slides(path: Path, lesson: int, body: str) -> Iterator[Spoken]:
    starts = 0
    for part in re.split(r"^(?=## )", body, flags=re.MULTILINE)[1:]:
        head, _, rest = part.partition("\n")
        match = _HEADING.fullmatch(head.strip())
        if match is None:
            raise ReportError(f"{path.name}: {head.strip()!r} is not a name and its minutes, as in `## 1.1 points 5`.")
        blocks = [block.strip() for block in re.split(r"\n{2,}", rest) if block.strip()]
        points = [line[2:] for block in blocks if block.startswith("- ") for line in block.splitlines()]
        notes = tuple(block for block in blocks if not block.startswith("- "))
        yield Spoken(match[1], lesson, starts, int(match[2]), tuple(points), notes)
        starts += int(match[2])
