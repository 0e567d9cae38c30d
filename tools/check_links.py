"""Every relative link and anchor of the Markdown files leads somewhere; nothing is fetched.

    python tools/check_links.py

Files below docs/ become pages of the site, with anchors as Python-Markdown makes them, and may link to generated
pages; all others are read on a code host, with anchors as those make them.
"""

import importlib.util
import re
import sys
import unicodedata
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PLACES = ("*.md", "docs/**/*.md", "packages/**/*.md", "benchmarks/**/*.md", "examples/**/*.md", "src/**/*.md")
OWN_SYNTAX = (
    "src/tightgrad_lab/report/book/",
    "src/tightgrad_lab/slides/",
)  # their builders resolve `#table-3` and such

_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s+(\S+)|(?:href|src)=\"([^\"]+)\"", re.M)
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +\{#([\w-]+)\})? *#*$", re.MULTILINE)
_ID = re.compile(r"(?:\bid|\bname)=\"([^\"]+)\"|\{#([\w-]+)\}")
_ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:|^//")


def main() -> None:
    """Print what leads nowhere; exit with 1 if anything does."""
    found = list(broken(ROOT, generated()))
    print("\n".join(found) or "links: all lead somewhere")
    sys.exit(bool(found))


def generated() -> dict[str, str]:
    """Return the text of the pages that the site makes, by where they lie below docs/."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.pages())


def broken(root: Path, made: dict[str, str]) -> "list[str]":
    """Return a line for each link of the files below `root`, and of the pages `made`, that leads nowhere."""
    texts = {path.resolve(): path.read_text(encoding="utf-8") for place in PLACES for path in root.glob(place)}
    texts |= {(root / "docs" / name).resolve(): text for name, text in made.items()}
    wrong = []
    for path, text in sorted(texts.items()):
        name = path.relative_to(root.resolve()).as_posix()
        if name.startswith(OWN_SYNTAX):
            continue
        for match in _LINK.finditer(without_code(text)):
            target = next(filter(None, match.groups()))
            if not _ELSEWHERE.match(target) and (problem := _problem(path, target, texts, root)):
                wrong.append(f"{name}: {target} {problem}")
    return wrong


def _problem(page: Path, target: str, texts: dict[Path, str], root: Path) -> str:
    """Return what is wrong with a link of `page`; an empty string if nothing is."""
    place, _, anchor = unquote(target).partition("#")
    there = (page.parent / place).resolve() if place else page
    if there not in texts and not there.exists():
        return "does not exist"
    site = (root / "docs").resolve()
    if site in page.parents and site not in there.parents:
        return "is not part of the site"
    if anchor and there in texts and anchor not in anchors(texts[there], site=site in there.parents):
        return "has no such heading"
    return ""


def without_code(text: str) -> str:
    """Return Markdown without code, in which nothing is a link."""
    return _CODE.sub("", _FENCE.sub("", text))


def anchors(text: str, *, site: bool) -> set[str]:
    """Return what `#...` may name in a page: its headings, and the ids that it sets."""
    text = _FENCE.sub("", text)
    found = {next(filter(None, match.groups())) for match in _ID.finditer(text)}
    found |= set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))  # mkdocstrings: the name is the anchor
    for heading, own in _HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        slug = own or (site_slug(plain) if site else host_slug(plain))
        number = "_{}" if site else "-{}"
        found.add(next(one for n in range(1000) if (one := slug + (number.format(n) if n else "")) not in found or own))
    return found


def site_slug(heading: str) -> str:
    """Return Python-Markdown's anchor of a heading."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def host_slug(heading: str) -> str:
    """Return the anchor of a heading as code hosts make it."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower()))


if __name__ == "__main__":
    main()
