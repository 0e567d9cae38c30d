"""References: the papers of the course and those that the methods' cards name, with what uses them here."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightgrad_lab.report.errors import ReportError

KNOWN = Path(__file__).with_name("references.json")
METHODS = "methods.json"
"""The cards of all methods, which the lab writes under runs/."""
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


@dataclass(frozen=True, slots=True)
class Paper:
    """One reference.

    Args:
        pairs: whose experiments use it.
        methods: ids of the methods that come from it.
        role: key of the text that says how the page uses it; empty for the methods' papers.
        key: by which the text cites it; that of a course's paper is its role.
    """

    authors: str
    year: int
    title: str
    venue: str
    url: str
    pairs: tuple[str, ...]
    methods: tuple[str, ...] = ()
    role: str = ""
    key: str = ""

    @property
    def anchor(self) -> str:
        """Its id on the page."""
        return "ref-" + re.sub(r"[^a-z0-9]+", "-", self.url.removeprefix("https://").lower()).strip("-")


def known() -> dict[str, list[dict[str, Any]]]:
    """What references.json knows: the papers of the course, and the bibliography of the methods."""
    found: dict[str, list[dict[str, Any]]] = json.loads(KNOWN.read_text(encoding="utf-8"))
    return found


def citations(language: str) -> dict[str, tuple[str, str]]:
    """Of every paper that the text can cite, by its key: its anchor, and its authors and year in words."""
    found = {}
    for item in (one for group in known().values() for one in group):
        paper = Paper(**{**item, "pairs": tuple(item["pairs"])})
        if key := paper.key or paper.role:
            found[key] = (paper.anchor, _cited(paper, language))
    return found


def _cited(paper: Paper, language: str) -> str:
    """Pascanu et al. (2013), or Hochreiter & Schmidhuber (1997)."""
    names = [name.split()[-1] for name in paper.authors.removesuffix(" et al.").split(", ")]
    many = len(names) > 2 or paper.authors.endswith(" et al.")
    if language == "zh":
        words = f"{names[0]} 等" if many else " 与 ".join(names)
        return f"{words}（{paper.year}）"
    return f"{f'{names[0]} et al.' if many else ' & '.join(names)} ({paper.year})"


def reading() -> list[Paper]:
    """What the text cites beyond the papers of the course and of the methods, oldest first."""
    found = [Paper(**{**item, "pairs": tuple(item["pairs"])}) for item in known()["reading"]]
    return sorted(found, key=lambda paper: (paper.year, paper.url))


def course_papers() -> list[Paper]:
    """The twelve of the course, in its order."""
    return [Paper(**{**item, "pairs": tuple(item["pairs"])}) for item in known()["course"]]


def read_cards(root: Path) -> list[dict[str, Any]]:
    """The cards that the lab wrote; none if it has not been run.

    Raises:
        ReportError: the file is damaged.
    """
    path = root / METHODS
    if not path.is_file():
        return []
    try:
        cards: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["methods"]
        return [{**card, "id": str(card["id"]), "reference": str(card["reference"])} for card in cards]
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: not a list of method cards ({error}). Run `tightgrad lab` again.") from error


def method_papers(cards: list[dict[str, Any]]) -> list[Paper]:
    """The papers that cards name by their arXiv number, oldest first, without those of the course.

    A paper that the bibliography does not know is shown as the card names it.
    """
    bibliography = {_arxiv(item["url"]): item for item in known()["methods"]}
    users: dict[str, list[str]] = {number: [] for number, item in bibliography.items() if item["pairs"]}
    for card in cards:
        for number in ARXIV.findall(card["reference"]):
            users.setdefault(number, []).append(card["id"])
    course = {_arxiv(paper.url) for paper in course_papers()}
    found = [_paper(number, tuple(ids), bibliography, cards) for number, ids in users.items() if number not in course]
    return sorted(found, key=lambda paper: (paper.year, paper.url))


def users_of_course(cards: list[dict[str, Any]], paper: Paper) -> tuple[str, ...]:
    """The methods whose card names a paper of the course."""
    number = _arxiv(paper.url)
    return tuple(card["id"] for card in cards if number and number in ARXIV.findall(card["reference"]))


def _paper(
    number: str, ids: tuple[str, ...], bibliography: dict[str, dict[str, Any]], cards: list[dict[str, Any]]
) -> Paper:
    item = bibliography.get(number)
    if item is not None:
        return Paper(**{**item, "pairs": tuple(item["pairs"]), "methods": ids})
    named = next(part for card in cards for part in card["reference"].split(";") if number in part)
    authors, year = re.sub(r",? *arXiv.*", "", named).strip(), 2000 + int(number[:2])
    return Paper(re.sub(r",? \d{4}$", "", authors), year, "", "arXiv", f"https://arxiv.org/abs/{number}", (), ids)


def _arxiv(url: str) -> str:
    return url.rpartition("/")[2] if "arxiv.org" in url else ""
