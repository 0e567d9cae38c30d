"""What Python writes for an instrument: a place on the page, and the script with its data and words."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tightgrad_lab.schema import PUBLISHED

NAMES = ("clip", "accumulate", "compress", "link")
RESULT = PUBLISHED / "instruments.json"
_HERE = Path(__file__).parent
_PLACE = Markup(
    '<div class="instrument" role="group" id="instrument-{name}" data-instrument="{name}" data-prevent-swipe'
    ' aria-labelledby="instrument-{name}-title"><h4 id="instrument-{name}-title">{title}</h4>'
    '<p class="try">{attempt}</p><div class="settings"></div><div class="picture"></div>'
    '<dl class="values" aria-live="polite"></dl>'
    '<p class="source"><span>{source}</span></p></div>'
)


@cache
def words(language: str) -> dict[str, str]:
    """Return the texts of the instruments."""
    found: dict[str, str] = json.loads((_HERE / "text" / f"{language}.json").read_text(encoding="utf-8"))
    return found


@cache
def data() -> dict[str, Any]:
    """Return what was measured for the instruments; it comes with the package."""
    found: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return found


def instrument(name: str, language: str) -> Markup:
    """Return the place of an instrument, which the script fills.

    Args:
        name: one of `NAMES`.
        language: "en" or "zh".
    """
    if name not in NAMES:
        raise ValueError(f"there is no instrument {name!r}; choose from {', '.join(NAMES)}.")
    own, about = words(language), data()
    environment = about["environment"]
    source = own["source"].format(
        file=f"published/{RESULT.name}",
        command=about["command"],
        processor=environment["processor"],
        date=environment["time"][:10],
    )
    heading = own["title"].format(title=title(name, language))
    return _PLACE.format(name=name, title=heading, attempt=own[f"{name}.try"], source=source)


def title(name: str, language: str) -> str:
    """Return what an instrument is about, such as "clip a real gradient"."""
    return words(language)[f"{name}.title"]


def write_script(assets: Path, language: str) -> None:
    """Write the JavaScript of all instruments, with the data and the words of a language: instruments.LANGUAGE.js."""
    own = json.dumps({"data": data(), "words": words(language)}, ensure_ascii=False, separators=(",", ":"))
    parts = [(_HERE / f"{name}.js").read_text(encoding="utf-8") for name in ("model", "view")]
    script = "\n".join([f"const INSTRUMENTS = {own};", *parts])
    (assets / f"instruments.{language}.js").write_text(script, encoding="utf-8")


def style() -> str:
    """Return the style sheet; its colours are the page's."""
    return (_HERE / "instruments.css").read_text(encoding="utf-8")
