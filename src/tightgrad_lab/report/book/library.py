"""The whole book in one language: chapters, questions and glossary, with what was measured filled in."""

import re
from dataclasses import dataclass

from markupsafe import Markup

from tightgrad_lab.report import papers
from tightgrad_lab.report.book import chapters
from tightgrad_lab.report.book.chapters import Part
from tightgrad_lab.report.book.facts import MEASURED
from tightgrad_lab.report.book.glossary import known_symbols, terms
from tightgrad_lab.report.book.markdown import Renderer
from tightgrad_lab.report.book.mathematics import mathml
from tightgrad_lab.report.book.prediction_facts import PREDICTED
from tightgrad_lab.report.book.predictions import PICK, Asked, follow, read_predictions
from tightgrad_lab.report.claims.judgement import Finding
from tightgrad_lab.report.claims.words import shown
from tightgrad_lab.report.course import COURSE, Section
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.faq import QUESTIONS
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.places import Places, elsewhere
from tightgrad_lab.report.texts import Texts


@dataclass(frozen=True, slots=True)
class ShownSection:
    """A section of the course with its text."""

    section: Section
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class ShownChapter:
    """A chapter with its text."""

    number: int
    title: str
    intro: tuple[Part, ...]
    sections: tuple[ShownSection, ...]
    closing: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A question of students and the advice; `name` says which measured answers stand below it, if any."""

    name: str
    title: Markup
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A term or symbol of the glossary, as HTML."""

    anchor: str
    head: Markup
    other: str
    meaning: Markup


class Library:
    """Reads and renders the texts of one language.

    Args:
        runs: what was measured.
        texts: the words around the text.
        places: where numbers stand on the page; without it, sentences link to the figure of their pair.
    """

    def __init__(self, runs: Runs, texts: Texts, places: Places | None = None) -> None:
        self.runs = runs
        self.texts = texts
        self.places = places or Places()
        self.renderer = Renderer(texts, papers.citations(texts.language))

    def chapters(self) -> list[ShownChapter]:
        """Every chapter, in the order of the course."""
        found = []
        for number, course in enumerate(COURSE, 1):
            name = f"chapter{number}"
            text = chapters.read(self.texts.language, name)
            if len(text.sections) != len(course):
                raise ReportError(
                    f"{self._file(name)} has {len(text.sections)} sections (## headings); the course has {len(course)}."
                )
            sections = tuple(
                ShownSection(section, own.title, self._parts(name, own.source))
                for section, own in zip(course, text.sections, strict=True)
            )
            intro, closing = self._parts(name, text.intro), self._parts(name, text.closing)
            found.append(ShownChapter(number, text.title, intro, sections, closing))
        return found

    def page(self, name: str) -> tuple[str, tuple[Part, ...]]:
        """Title and text of a file without sections, such as summary."""
        text = chapters.read(self.texts.language, name)
        found = self._parts(name, text.intro)
        return text.title, tuple(Part(one.kind, Markup(re.sub("<(/?)h4>", r"<\1h3>", str(one.body)))) for one in found)

    def questions(self) -> tuple[str, tuple[Part, ...], list[Question]]:
        """Title, introduction and questions; `## Question {#name}` names the measured answers."""
        text = chapters.read(self.texts.language, "questions")
        found = []
        for one in text.sections:
            match = re.fullmatch(r"(.*?) \{#(\w+)\}", one.title)
            title, name = (match[1], match[2]) if match else (one.title, "")
            if name and name not in QUESTIONS:
                raise ReportError(
                    f"{self._file('questions')}: {{#{name}}} has no measured answers; known are {', '.join(QUESTIONS)}."
                )
            found.append(Question(name, self.renderer.inline(title), self._parts("questions", one.source)))
        return text.title, self._parts("questions", text.intro), found

    def terms(self) -> list[Entry]:
        """The terms of the glossary."""
        return [
            Entry(f"term-{one.name}", Markup.escape(one.word), one.other, self.renderer.inline(one.meaning))
            for one in terms(self.texts.language)
        ]

    def symbols(self) -> list[Entry]:
        """The symbols of the formulas."""
        return [
            Entry("", Markup(mathml(one.latex)), one.unit, self.renderer.inline(one.meaning))
            for one in known_symbols(self.texts.language)
        ]

    def finding(self, name: str) -> Finding | None:
        """What was found by a measurement that the text names; None if it was not made."""
        if name not in MEASURED:
            raise ReportError(f"@measured {name} names no measurement; known are {', '.join(MEASURED)}.")
        return MEASURED[name](self.runs)

    def _file(self, name: str) -> str:
        return f"book/{self.texts.language}/{name}.md"

    def _parts(self, name: str, source: str) -> tuple[Part, ...]:
        """The pieces of a text; what is wrong in it is said with the name of its file."""
        try:
            return tuple(chapters.parts(source, self.renderer, self.sentence))
        except ReportError as error:
            raise ReportError(f"{self._file(name)}: {error}") from error

    def sentence(self, name: str, template: str) -> str | None:
        """The sentence with its facts, and a link to the table that has them; None if nothing measured them."""
        finding = self.finding(name)
        if finding is None:
            return None
        return self.filled(f"@measured {name}", finding, template) + self.renderer.hold(self.origin(finding, name))

    def asked(self, pair: str, place: str) -> Asked | None:
        """The question in front of a pair's figure or table; None if there is none, or nothing measured its answer."""
        question = read_predictions(self.texts.language).get((pair, place))
        finding = PREDICTED[pair, place](self.runs) if question else None
        right = question.right(finding.facts[PICK]) if question and finding else None
        if question is None or finding is None or right is None:
            return None

        def said(text: str) -> Markup:
            return self.renderer.inline(self.filled(f"predictions.md: {pair} {place}", finding, text))

        choices = []
        for letter, one in zip("ABCD", question.choices, strict=False):
            found = self.texts("predict.right") if one is right else one.why or self.texts("predict.expected")
            choices.append((letter, said(one.text), one is right, said(found)))
        because = "" if right.why else ("" if self.texts.language == "zh" else " ") + question.because
        answer = said(question.measured + because) + self.origin(finding, f"{pair}-{place}", place)
        return Asked(said(question.question), tuple(choices), answer)

    def filled(self, what: str, finding: Finding, template: str) -> str:
        """The template with the facts that it names; `what` says in an error whose template it is."""
        if unknown := set(re.findall(r"\{(\w+)(?: \?|\})", template)) - finding.facts.keys():
            raise ReportError(f"{what} has no {', '.join(sorted(unknown))}; its facts are {', '.join(finding.facts)}.")
        facts = {key: shown(fact, self.texts) for key, fact in finding.facts.items()}

        def held(match: re.Match[str]) -> str:
            before, after = match.string[: match.start()][-1:], match.string[match.end() :][:1]
            around = self.texts.laid(f"{before}{facts[match[1]]}{after}")
            left, right = around.startswith(f"{before} ") and before, around.endswith(f" {after}") and after
            return f"{' ' if left else ''}{self.renderer.hold(facts[match[1]])}{' ' if right else ''}"

        return re.sub(r"\{(\w+)\}", held, follow(template, finding.facts))

    def machine(self, finding: Finding) -> dict[str, str]:
        """The processor and the date of a finding that another machine measured; nothing for this one's."""
        result = elsewhere(finding, self.runs)
        if result is None:
            return {}
        about = result.environment
        return {"processor": str(about.get("processor", about.get("device", ""))), "date": str(about["time"])[:10]}

    def origin(self, finding: Finding, name: str, place: str = "table") -> Markup:
        """Where the numbers of a sentence stand, and whose machine measured them if it was another one.

        Args:
            finding: what the numbers are.
            name: of the sentence, which the page keeps beside it.
            place: of the pair to lead to: "table" or "figure".
        """
        link = self.places.link(finding, self.texts, place)
        machine = self.machine(finding)
        text = self.texts.html("evidence.elsewhere" if machine else "evidence.origin", table=link, **machine)
        return Markup('<span class="origin" data-name="{}">{}</span>').format(name, text)
