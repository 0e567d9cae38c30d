"""Writes the slides: an HTML file per language, and beside them what they load."""

import re
import shutil
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tightgrad_lab import instruments, report
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.pages import WHOLE, file_name
from tightgrad_lab.report.texts import LANGUAGES, breakable, load, prose
from tightgrad_lab.slides.deck import Deck
from tightgrad_lab.slides.plates import few
from tightgrad_lab.slides.reveal import copy_reveal
from tightgrad_lab.slides.words import load_words

_HERE = Path(__file__).parent / "templates"
_STYLE = Path(report.__file__).parent / "templates" / "style.css"


def build(runs: Path, out: Path) -> list[Path]:
    """Write slides.en.html and slides.zh.html into the folder of the report; return their paths, English first.

    A pure function of the files under `runs`. The slides open without a network, from the disk.

    Raises:
        ReportError: the folder is missing, a file is malformed, or reveal.js is not installed.
    """
    folder = Runs(Path(runs))
    assets = Path(out) / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    copy_reveal(assets)
    for name in (figures.FONT_FILE.name, "STIXMath-subset.otf", "OFL.txt", "OFL-STIX.txt"):
        shutil.copyfile(figures.FONT_FILE.with_name(name), assets / name)
    written = []
    for language in LANGUAGES:
        instruments.write_script(assets, language)
        path = Path(out) / f"slides.{language}.html"
        path.write_text(_page(folder, language), encoding="utf-8")
        written.append(path)
    return written


def _page(folder: Runs, language: str) -> str:
    templates = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["prose"] = prose
    templates.filters["breakable"] = breakable
    templates.filters["few"] = few
    deck = Deck(folder, load(language), load_words(language))
    html = templates.get_template("deck.html.j2").render(
        t=deck.texts,
        w=deck.words,
        zip=zip,
        slides=deck.slides(),
        lessons=deck.lessons,
        book=file_name(WHOLE, language),
        other=next(one for one in LANGUAGES if one != language),
        colors=Markup(_colors()),
        instruments=Markup(instruments.style()),
        style=Markup((_HERE / "deck.css").read_text(encoding="utf-8")),
        script=Markup((_HERE / "deck.js").read_text(encoding="utf-8")),
    )
    # What the book's sentences link to stands in the book; links of the deck's own begin with #/.
    return re.sub(r'(<a [^>]*\bhref=")#(?!/)', rf"\1{file_name(WHOLE, language)}#", html)


def _colors() -> str:
    """The book's colours and fonts, light and dark: what its style sheet begins with."""
    return _STYLE.read_text(encoding="utf-8").partition("*, *::before")[0]
