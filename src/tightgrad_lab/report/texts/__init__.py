"""The words of the report: a JSON file per language, and one per language for each pair; same keys in both."""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markupsafe import Markup, escape

LANGUAGES = ("en", "zh")
_NOUNS = "epoch seed run step method link rank sequence sample round thread core kind gradient batch process"
_SINGULAR = {f"{noun}{'es' if noun in ('batch', 'process') else 's'}": noun for noun in _NOUNS.split()}
_TAGS = r"((?:<[^>]*>)*)"
_TOUCHING = re.compile(
    rf"([\u4e00-\u9fff](?=(?:<[^>]*>)*[A-Za-z0-9])|[A-Za-z0-9%](?=(?:<[^>]*>)*[\u4e00-\u9fff])){_TAGS}(?=(.))"
)
_ONE = re.compile(rf"((?<![\d.,−-])1(?:</data>)?[ \u00a0](?:micro-)?)({'|'.join(_SINGULAR)})\b(?!-)")


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of one language; `language` is "en" or "zh"."""

    language: str
    entries: dict[str, str]

    def __call__(self, key: str, **values: object) -> str:
        """Plain text, for figures, CSV files and attributes."""
        return self.laid(self.entries[key].format(**values), self.entries[key], *values.values())

    def html(self, key: str, **values: object) -> Markup:
        """HTML: values are escaped unless they are Markup, `x` becomes code."""
        template = prose(self.entries[key])
        return Markup(self.laid(str(template.format(**values)), template, *values.values()))

    def laid(self, text: str, *parts: object) -> str:
        """Return text, made of a template and of values, in which the values agree with what stands beside them."""
        return spaced(text, *parts) if self.language == "zh" else self.counted(text)

    def counted(self, text: str) -> str:
        """Return text whose nouns are in the singular behind a 1; Chinese has none to change."""
        return text if self.language == "zh" else _ONE.sub(lambda found: found[1] + _SINGULAR[found[2]], text)

    def get(self, key: str, default: str) -> str:
        return self.entries.get(key, default)

    def combination(self, name: str) -> str:
        """The combination in words: clip + compress."""
        if name == "none":
            return self("combination.none")
        return " + ".join(self(f"technique.{part}") for part in name.split("+"))

    def metric(self, name: str) -> str:
        return self.get(f"metric.{name}", name)

    def join(self, parts: list[str]) -> str:
        return ("、" if self.language == "zh" else ", ").join(parts)


def spaced(text: str, *parts: object) -> str:
    """Return Chinese text with a space beside each Latin letter or digit, except where a part of it has none."""
    written = "\n".join(map(str, parts))

    def apart(found: re.Match[str]) -> str:
        left, tags, right = (one or "" for one in found.groups())
        if left + tags + right in written:
            return found[0]
        return f"{left} {tags}" if "\u4e00" <= left <= "\u9fff" else f"{left}{tags} "

    return _TOUCHING.sub(apart, text)


def prose(text: str | Markup) -> Markup:
    """Escaped unless it is Markup; `x` becomes code."""
    if isinstance(text, Markup):
        return text
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def breakable(text: str | Markup) -> str | Markup:
    """Let code in a table's cell break after a dot, an underscore or a bracket, rather than inside a word."""
    if not isinstance(text, Markup):
        return text
    return Markup(re.sub(r"<code>(.*?)</code>", lambda found: re.sub(r"([._(])", r"\1<wbr>", found[0]), text))


@cache
def load(language: str) -> Texts:
    """The texts of a language."""
    folder = Path(__file__).parent
    entries: dict[str, str] = {}
    for path in (folder / f"{language}.json", *sorted((folder / "pairs").glob(f"*.{language}.json"))):
        found = json.loads(path.read_text(encoding="utf-8"))
        if twice := entries.keys() & found.keys():
            raise ValueError(f"{path.name}: {', '.join(sorted(twice))} stands in another file already")
        entries |= found
    return Texts(language, entries)
