"""The slides of the lecture in order: what stands on each of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from tightgrad_lab.instruments import NAMES, instrument, title
from tightgrad_lab.report import papers
from tightgrad_lab.report.book.library import Library, ShownChapter, ShownSection
from tightgrad_lab.report.book.predictions import Asked
from tightgrad_lab.report.claims import judged
from tightgrad_lab.report.environment import environments
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.measured.results import PUBLISHED
from tightgrad_lab.report.pairs import PAIRS
from tightgrad_lab.report.texts import Texts
from tightgrad_lab.slides.outline import PAPERS
from tightgrad_lab.slides.plates import Plates, plates, sentences
from tightgrad_lab.slides.script import Lesson, Spoken, lessons

PAIR = {pair.name: pair for pair in PAIRS}


@dataclass(frozen=True, slots=True)
class Slide:
    """A slide: what is said on it, which template draws it, its headings, and what that template needs."""

    spoken: Spoken
    kind: str
    title: str
    above: str
    content: dict[str, Any]

    @property
    def anchor(self) -> str:
        """Its id, such as s1-1-points."""
        return "s" + re.sub(r"\W+", "-", self.spoken.name)


class Deck:
    """Makes the slides of one language.

    Args:
        runs: what was measured.
        texts: the words of the book.
        words: those of the deck.
    """

    def __init__(self, runs: Runs, texts: Texts, words: Texts) -> None:
        self.runs = runs
        self.texts = texts
        self.words = words
        self.library = Library(runs, texts)
        self.chapters = self.library.chapters()
        self.lessons = lessons(texts.language)
        self._questions_asked: dict[str, Asked | None] = {}
        self._shown: dict[str, Plates] = {}

    def slides(self) -> list[Slide]:
        """Every slide, in the order in which it is shown."""
        return [*self._slides()]

    def date(self) -> str:
        """Return the day of the latest result: this machine's own, else of those that come with the package."""
        for runs in (self.runs, Runs(self.runs.root / PUBLISHED) if (self.runs.root / PUBLISHED).is_dir() else None):
            found = environments(runs, self.texts) if runs else []
            if found:
                return max(one.last for one in found)[:10]
        return self.texts("status.none")

    def _slides(self) -> Iterator[Slide]:
        for lesson in self.lessons:
            for spoken in lesson.slides:
                place, _, part = spoken.name.partition(" ")
                if not part:
                    yield self._other(spoken)
                    continue
                chapter, section = self._section(place)
                shown = self._plates(place)
                above = (
                    f"{chapter.number}　{chapter.title}"
                    if self.texts.language == "zh"
                    else (f"{chapter.number}. {chapter.title}")
                )
                if part == "points" and (asked := self._asked(place)):
                    spoken, after = _split(spoken, self.words("predict.notes"), "predict")
                    before, spoken = replace(after, starts=spoken.starts), replace(spoken, starts=spoken.starts + 1)
                    yield Slide(before, "predict", f"{place} {section.title}", above, {"asked": asked})
                seen, measured = sentences(section)
                in_words = shown.table is not None and shown.table.kind == "words"
                content = {
                    "plates": shown,
                    "figure": next(iter(shown.figures), None),
                    "paper": self._paper(place),
                    "measured": measured[: 1 if in_words else 2],
                    "seen": seen if part == "points" else "",
                }
                rest = shown.figures[1:] if part == "points" else ()
                if rest:
                    spoken, after = _split(spoken, self.words("figure.notes"), "figure")
                yield Slide(spoken, part, f"{place} {section.title}", above, content)
                for figure in rest:
                    yield Slide(after, "figure", f"{place} {section.title}", above, content | {"figure": figure})

    def _section(self, place: str) -> tuple[ShownChapter, ShownSection]:
        number, _, section = place.partition(".")
        chapter = self.chapters[int(number) - 1]
        return chapter, chapter.sections[int(section) - 1]

    def _plates(self, place: str) -> Plates:
        """The figure, in one or two parts, and the table of a heading."""
        if place not in self._shown:
            self._shown[place] = plates(self.library, PAIR[self._section(place)[1].section.pairs[0]])
        return self._shown[place]

    def _asked(self, place: str) -> Asked | None:
        """The question that is put before the figure of a heading."""
        if place not in self._questions_asked:
            pair = self._section(place)[1].section.pairs[0]
            self._questions_asked[place] = self.library.asked(pair, "figure")
        return self._questions_asked[place]

    def _paper(self, place: str) -> papers.Paper:
        return next(paper for paper in papers.course_papers() if paper.role == PAPERS[place])

    def _other(self, spoken: Spoken) -> Slide:
        if spoken.name in NAMES:
            return self._instrument(spoken)
        makers = {
            "title": self._title,
            "contents": self._contents,
            "plan": self._plan,
            "summary": self._summary,
            "verdicts": self._verdicts,
            "references": self._references,
            "discussion": self._discussion,
            "questions": self._questions,
        }
        heading, content = makers[spoken.name]()
        return Slide(spoken, spoken.name, heading, self.texts("site.title"), content)

    def _instrument(self, spoken: Spoken) -> Slide:
        body = instrument(spoken.name, self.texts.language)
        heading = title(spoken.name, self.texts.language)
        return Slide(spoken, "instrument", heading, self.words("instrument"), {"body": body})

    def _title(self) -> tuple[str, dict[str, Any]]:
        return self.texts("site.title"), {"date": self.date()}

    def _contents(self) -> tuple[str, dict[str, Any]]:
        return self.words("contents"), {"chapters": self.chapters}

    def _plan(self) -> tuple[str, dict[str, Any]]:
        rows, first = [], 1
        for lesson in self.lessons:
            places = _places(lesson)
            more = sum(bool(self._asked(place)) + len(self._plates(place).figures[1:]) for place in places)
            last = first + len(lesson.slides) + more - 1
            parts = dict.fromkeys(self._named(spoken) for spoken in lesson.slides)
            rows.append((lesson, [one for one in parts if one], first, last))
            first = last + 1
        return self.words("plan"), {"rows": rows, "minutes": sum(lesson.minutes for lesson in self.lessons)}

    def _named(self, spoken: Spoken) -> str:
        place, _, part = spoken.name.partition(" ")
        if part:
            return f"{place} {self._section(place)[1].title}"
        return self.words("summary") if spoken.name == "summary" else ""

    def _summary(self) -> tuple[str, dict[str, Any]]:
        title, parts = self.library.page("summary")
        return title, {"sentences": _first("ul", parts[0].body)}

    def _verdicts(self) -> tuple[str, dict[str, Any]]:
        return self.words("verdicts"), {"claims": list(judged(self.runs, self.texts).values())}

    def _references(self) -> tuple[str, dict[str, Any]]:
        return self.texts("references.title"), {"papers": papers.course_papers()}

    def _discussion(self) -> tuple[str, dict[str, Any]]:
        parts = self.library.page("summary")[1]
        return self.words("discussion"), {"questions": _first("ol", parts[-1].body)}

    def _questions(self) -> tuple[str, dict[str, Any]]:
        title, _, questions = self.library.questions()
        return title, {"questions": questions}


def _places(lesson: Lesson) -> list[str]:
    """The headings whose figure a lesson shows."""
    return [one.name.partition(" ")[0] for one in lesson.slides if one.name.endswith(" points")]


def _split(spoken: Spoken, notes: str, kind: str) -> tuple[Spoken, Spoken]:
    """Take the last minute of a slide for another one."""
    left = replace(spoken, minutes=spoken.minutes - 1)
    name, starts = spoken.name.replace("points", kind), spoken.starts + left.minutes
    return left, replace(spoken, name=name, starts=starts, minutes=1, points=(), notes=(notes,))


def _first(tag: str, html: Markup) -> Markup:
    """Return the first list of a text."""
    found = re.search(rf"<{tag}>.*?</{tag}>", str(html), flags=re.DOTALL)
    return Markup(found[0] if found else "")
