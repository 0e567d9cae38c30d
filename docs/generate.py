"""Pages that are made when the site is built: methods from their cards, the API reference, every message, the glossary,
the course companion, the list of decisions.

An mkdocs hook. Nothing that it makes is kept in the repository.
"""

import tomllib
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from tightgrad.core.card import KINDS, MethodCard
from tightgrad.plan.registry import cards, method
from tightgrad_lab.audit import board
from tightgrad_lab.report.book.chapters import read
from tightgrad_lab.report.book.glossary import terms
from tightgrad_lab.report.course import COURSE
from tightgrad_lab.report.papers import ARXIV
from tightgrad_lab.site import examples, field, messages, reference

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
BOOSTS = {"decisions/": 0.3, "zh/": 0.3, "integrations/": 3, "examples/": 1.5, "premises/": 1.5, "comparison/": 1.5}
BOOSTS |= {"checkpoints/": 2, "observability/": 2, "own-codec/": 3}
"""How early pages below an address come in the search: guides before single messages, and guides to a framework before
names that have its own in them."""
TITLES = {
    "accumulate": "Accumulation",
    "clip": "Clipping",
    "codec": "Codecs",
    "reducer": "Reducers",
    "feedback": "Feedback",
}


def pages() -> dict[str, str]:
    """Every generated page: where it lies below docs/, and its Markdown."""
    found = {"methods/index.md": _methods_index(), "course.md": _course(), "decisions.md": _decisions()}
    found |= {"glossary.md": _glossary(), "troubleshooting.md": messages.page(), "comparison.md": field.page(RESULTS)}
    found |= {"board.md": board.page(RESULTS / "board"), "examples.md": examples.page(DOCS.parent / "examples")}
    return found | reference.pages() | {f"methods/{card.id}.md": _method(card) for card in cards()}


def on_config(config: Any) -> Any:
    """Called by mkdocs first: the addresses of the project are those of pyproject.toml."""
    urls = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    config["site_url"] = f"{urls['Documentation']}/"
    config["extra"]["social"] = [{"icon": "material/source-repository", "link": urls["Source"], "name": "Source"}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs once it knows the files of docs/."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> None:
    """Called by mkdocs for each page, which says here how early it comes in the search where that is not as written."""
    for folder, boost in BOOSTS.items():
        if page.url.startswith(folder):
            page.meta.setdefault("search", {"boost": boost})


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _properties(card: MethodCard) -> str:
    return ", ".join([card.scope, *(["unbiased"] if card.unbiased else []), *(["linear"] if card.linear else [])])


def _methods_index() -> str:
    lines = ["# Methods", "", "Generated from each method's metadata; `tightgrad methods` prints the same.", ""]
    for kind, group in groupby(sorted(cards(), key=lambda card: KINDS.index(card.kind)), key=lambda card: card.kind):
        lines += [f"## {TITLES[kind]}", "", "| Method | What it does | Properties |", "|---|---|---|"]
        lines += [f"| [`{c.id}`]({c.id}.md) | {_cell(c.summary)} | {_properties(c)} |" for c in group]
        lines.append("")
    return "\n".join(lines)


def _linked(reference: str) -> str:
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", reference)


def _method(card: MethodCard) -> str:
    found = method(card.id)
    public = _public_name(found)
    lines = [
        f"# `{card.id}`",
        "",
        f"{card.summary[0].upper()}{card.summary[1:]}.",
        "",
        f"- **Use when** {card.use_when}.",
        f"- **Avoid when** {card.avoid_when}.",
        f"- **Kind**: {TITLES[card.kind].lower()}; **sees**: {_properties(card)}",
    ]
    if card.contraction:
        lines.append(f"- **Error**: {card.contraction}")
    if card.reducer:
        lines.append(f"- **Reducer** if a plan names none: [`{card.reducer}`]({card.reducer}.md)")
    lines += [
        f"- **From**: {_linked(card.reference)}",
        "",
        f"::: {public}",
        "    options:",
        "      heading_level: 2",
        "",
    ]
    return "\n".join(lines)


def _public_name(found: type) -> str:
    """Where users import it from: the package that gives it its public name."""
    package = ".".join(found.__module__.split(".")[:2])
    return f"{package}.{found.__name__}"


def _course() -> str:
    """Which page, section and command answers which heading of the course."""
    lines = [
        "# Course companion",
        "",
        "The book that `tightgrad lab` makes follows a course of eight chapters. This page says what answers",
        "each of its headings: the figure and table with that number, the command that measures them, and the page",
        "of this site. `examples/notebooks` has seven notebooks in English and Chinese, one for each technique, each case",
        "and the combination, from scratch first; `pip install '.[course]'`, then `jupyter lab examples/notebooks`.",
        "",
    ]
    for n, chapter in enumerate(COURSE, start=1):
        english, chinese = read("en", f"chapter{n}"), read("zh", f"chapter{n}")
        lines += [f"## {n} {english.title}", "", f"*{chinese.title}*", ""]
        lines += ["| Heading | Figure and table | Command | Page |", "|---|---|---|---|"]
        for section, own, other in zip(chapter, english.sections, chinese.sections, strict=True):
            pairs = _pairs(section.pairs)
            numbers = ", ".join(str(pair.number) for pair in pairs)
            command = " ".join(f"`{pair.command}`" for pair in pairs)
            page = " ".join(_pages_of(section.chapter, section.number))
            title = f"{section.name} {own.title}<br>{other.title}"
            lines.append(f"| {title} | {numbers} | {command} | {page} |")
        lines.append("")
    lines += [
        "After the chapters come the summary, which gives a verdict on each claim of the course from the measured",
        "rows, the references, questions with advice and measured answers, the glossary, and the environment.",
        "",
    ]
    return "\n".join(lines)


def _pairs(names: Iterable[str]) -> list[Any]:
    """Return the pairs of figure and table with these names."""
    from tightgrad_lab.report.pairs import PAIRS

    by_name = {pair.name: pair for pair in PAIRS}
    return [by_name[name] for name in names]


def _pages_of(chapter: int, section: int) -> Iterable[str]:
    by_place = {
        1: ["[clipping](methods/index.md#clipping)"],
        2: ["[accumulation](methods/accumulate.md)"],
        3: ["[codecs](methods/index.md#codecs)", "[how to choose](how-to-choose.md)"],
        4: ["[clipping](methods/index.md#clipping)", "[reference](reference/tightgrad.md)"],
        5: ["[quick start](index.md)", "[integrations](integrations.md)"],
        6: ["[codecs](methods/index.md#codecs)", "[the path](data-path.md)"],
        7: ["[the path](data-path.md)", "[how to choose](how-to-choose.md)"],
    }
    cases = {1: ["[images](cases/image.md)"], 2: ["[text](cases/text.md)", "[translation](cases/translation.md)"]}
    return by_place.get(chapter) or cases.get(section, ["[series](cases/series.md)"])


def _glossary() -> str:
    """The terms of the book, which the docs use as well."""
    lines = ["# Glossary", "", "The words of the field, as they are used here.", ""]
    lines += ["| Term | Chinese | Meaning |", "|---|---|---|"]
    lines += [f"| {term.word} | {term.other} | {term.meaning} |" for term in terms("en")]
    return "\n".join([*lines, ""])


def _decisions() -> str:
    lines = ["# Decisions", "", "Why the code is as it is, where another way was possible.", ""]
    for path in sorted((DOCS / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}](decisions/{path.name})")
    return "\n".join([*lines, ""])
