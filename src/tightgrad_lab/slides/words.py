"""The few words of the deck that the book does not have: `text/words.LANGUAGE.json`."""

import json
from functools import cache

from tightgrad_lab.report.texts import Texts
from tightgrad_lab.slides.script import HERE


@cache
def load_words(language: str) -> Texts:
    """Return the words of a language."""
    return Texts(language, json.loads((HERE / f"words.{language}.json").read_text(encoding="utf-8")))
