"""Questions to answer before one looks: `predictions.md`, each in front of the figure or table that has its answer.

`## pair figure` or `## pair table` says where a question stands. Below it are the question, its choices and the answer:

- `- 0.5..0.9: text | why not`: right if what was measured lies in this range; either end may be left out.
- `- name: text | why not`: right if what was measured has this name.
- `- ..0.5*: text`: the star marks what the chapter leads one to expect; it needs no "why not".
- `> sentence with {fact}`: what was measured; a second one explains it, and is left out if it came out otherwise.

Which choice is right is decided by the result, never by this file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup

from tightgrad_lab.report.claims.judgement import Fact, Number
from tightgrad_lab.report.errors import ReportError

HERE = Path(__file__).parent
PLACES = ("figure", "table")
_CHOICE = re.compile(r"- (?P<key>[\w.-]+)(?P<star>\*?): (?P<text>.+?)(?: \| (?P<why>.+))?")
_RANGE = re.compile(r"(-?[\d.]*\d)?\.\.(-?[\d.]*\d)?")
FOLLOWS = re.compile(r"\{(\w+) \? ((?:[^{}]|\{\w+\})+)\}")
"""A place in a sentence whose words depend on a fact."""
PICK = "pick"
"""The fact that decides which choice is right."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to choose from.

    Args:
        key: a range, such as `0.5..0.9`, or a name.
        text: what it says.
        why: what one gets wrong who chooses it; empty for what the chapter leads one to expect.
    """

    key: str
    text: str
    why: str

    def holds(self, pick: Fact) -> bool:
        """Whether what was measured makes it right."""
        if not isinstance(pick, Number):
            return self.key == pick
        low, high = self.ends
        return low <= pick.value < high

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of its range; the lower one belongs to it."""
        found = _RANGE.fullmatch(self.key)
        if found is None:
            raise ReportError(f"{self.key!r} is no range such as 0.5..0.9, but a number was measured.")
        return float(found[1] or "-inf"), float(found[2] or "inf")


def follow(template: str, facts: Mapping[str, Fact]) -> str:
    """Return a sentence whose words follow from its facts: `{gain ? ..1: costs time | 1..: saves time}`.

    The ranges and names are those of a choice; a text may hold braces of its own.

    Raises:
        ReportError: no range or name of a place holds the fact.
    """

    def pick(found: re.Match[str]) -> str:
        for key, text in alternatives(found[2]):
            if Choice(key, text, "").holds(facts[found[1]]):
                return text
        raise ReportError(f"{found[0]} has no words for {facts[found[1]]}.")

    return FOLLOWS.sub(pick, template)


def alternatives(text: str) -> list[tuple[str, str]]:
    """The ranges or names of `..1: costs time | 1..: saves time`, each with its words."""
    parts = (one.partition(":") for one in text.split("|"))
    return [(key.strip(), said.strip()) for key, _, said in parts]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A question as it is written.

    Args:
        measured: the sentence with what was measured.
        because: why, as long as what is expected was measured.
    """

    question: str
    choices: tuple[Choice, ...]
    measured: str
    because: str

    def right(self, pick: Fact) -> Choice | None:
        """Return the choice that was measured; None if it is none of them, or cannot be told."""
        return next((one for one in self.choices if one.holds(pick)), None)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it is shown.

    Args:
        choices: of each, its letter, its text, whether it is right, and what is said of it.
        answer: what was measured.
    """

    question: Markup
    choices: tuple[tuple[str, Markup, bool, Markup], ...]
    answer: Markup


@cache
def read_predictions(language: str) -> dict[tuple[str, str], Prediction]:
    """Return the questions of a language by pair and place.

    Raises:
        ReportError: one has not all its parts.
    """
    text = (HERE / language / "predictions.md").read_text(encoding="utf-8")
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        name, _, place = head.strip().partition(" ")
        if place not in PLACES:
            raise ReportError(f"predictions.md: {head.strip()!r} names no place; write `{name} figure` or table.")
        found[name, place] = _prediction(head.strip(), body)
    return found


def _prediction(head: str, body: str) -> Prediction:
    blocks = [" ".join(block.split()) for block in re.split(r"\n{2,}|\n(?=- |> )", body.strip())]
    choices = [match for block in blocks if (match := _CHOICE.fullmatch(block))]
    said = [block.removeprefix("> ") for block in blocks if block.startswith("> ")]
    question = [block for block in blocks if not block.startswith(("- ", "> "))]
    stars = [match for match in choices if match["star"]]
    whole = len(question) == 1 and len(choices) > 1 and len(said) == 2 and len(stars) == 1
    if not whole or any(bool(match["star"]) == bool(match["why"]) for match in choices):
        raise ReportError(
            f"predictions.md: {head!r} needs a question, choices of which one has a star and the others a reason "
            "behind `|`, and two lines that begin with `>`."
        )
    written = tuple(Choice(match["key"], match["text"], match["why"] or "") for match in choices)
    return Prediction(question[0], written, said[0], said[1])
