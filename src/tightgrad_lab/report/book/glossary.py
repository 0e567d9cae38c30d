"""The glossary: terms in both languages, and every symbol of every formula."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tightgrad_lab.report.book.mathematics import symbols

HERE = Path(__file__).parent
INDEX = ("index", "下标")
"""The unit of a symbol that only counts; it is not explained beside a formula."""


@dataclass(frozen=True, slots=True)
class Term:
    """A word of the field; `name` is its anchor, `other` the word in the other language."""

    name: str
    word: str
    other: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol of the formulas, in LaTeX: what it stands for, and its unit or what the code calls it."""

    latex: str
    meaning: str
    unit: str

    @property
    def letters(self) -> list[str]:
        """Its letters, the subscripts among them."""
        return symbols(self.latex)


@cache
def terms(language: str) -> tuple[Term, ...]:
    """Return the terms, in the order of the file."""
    return tuple(Term(*row) for row in _rows(language, "terms"))


@cache
def known_symbols(language: str) -> tuple[Symbol, ...]:
    """Return the symbols, in the order of the file."""
    return tuple(Symbol(latex.strip("$"), meaning, unit) for latex, meaning, unit in _rows(language, "symbols"))


def _rows(language: str, name: str) -> list[list[str]]:
    """Return the rows of a Markdown table, without its head."""
    lines = (HERE / language / f"{name}.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip() for line in lines if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def defined(latex: str, language: str, seen: set[str]) -> list[Symbol]:
    """Return the symbols of a formula that are not in `seen`, without indices, and add them to it.

    A symbol with a subscript of its own meaning, as in beta_2, stands for itself and not for its letter.
    """
    found = []
    letters = symbols(latex)
    subscripted = [symbol.latex for symbol in known_symbols(language) if "_" in symbol.latex]
    for symbol in known_symbols(language):
        own = symbol.letters[0]
        if symbol.latex in seen or own not in letters or symbol.unit in INDEX:
            continue
        whole = symbol.latex in subscripted
        if symbol.latex in latex if whole else own in symbols(_without(latex, subscripted)):
            seen.add(symbol.latex)
            found.append(symbol)
    return found


def _without(latex: str, parts: list[str]) -> str:
    for part in parts:
        latex = latex.replace(part, " ")
    return latex
