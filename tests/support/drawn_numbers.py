"""Draws numbers from a built book at random and traces each: its link, the table behind it, the file and the machine.

    cd tests && python -m support.drawn_numbers ../runs ../report --seed 1 --count 40

prints what each of the drawn numbers of both languages leads to, and ends with 1 if one of them is wrong.
"""

import argparse
import json
import random
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

ELSEWHERE = {"en": "measured on another machine", "zh": "在另一台机器上测得"}
PLATE = re.compile(r'<section id="([\w-]+)" class="plate tabular".*?</section>', re.DOTALL)
SENTENCE = re.compile(r'<(p|td)\b[^>]*>(?:(?!</?\1\b).)*?<span class="origin"[^>]*>.*?</\1>', re.DOTALL)
NUMBER = r"[\d.,]+(?:e−?\d+)?"
RANGE = re.compile(rf"({NUMBER}) \(({NUMBER})–({NUMBER})\)")
VALUE = re.compile(r'<data value="([^"]+)">([^<]*)</data>')
CLOSE = 1e-9


@dataclass
class Plate:
    """A table of the page: its numbers, the files that it is drawn from, and its commands."""

    values: list[float]
    files: list[str]
    commands: list[str]


@dataclass
class Drawn:
    """A number of a sentence.

    Args:
        value: as the page keeps it for machines.
        shown: as a reader sees it.
        text: the sentence.
        anchor: where its link leads.
        files: named beside it, none if only the link is.
        problems: what is wrong with it.
        how: "in the table", "in the file", or "computed from the file".
    """

    value: float
    shown: str
    text: str
    anchor: str
    files: list[str]
    problems: list[str] = field(default_factory=list)
    how: str = ""


def plates(html: str) -> dict[str, Plate]:
    """Return the tables of a page by their anchors."""
    found = {}
    for match in PLATE.finditer(html):
        body = match[0]
        values = [_number(one) for one in re.findall(r'data-value="([^"]*)"', body)]
        values += [_number(value) for value, _ in VALUE.findall(body)]
        codes = re.findall(r"<code>(runs/[^<]*)</code>", body)
        commands = re.findall(r'<code class="command">([^<]*)</code>', body)
        found[match[1]] = Plate([one for one in values if one is not None], codes, [unescape(c) for c in commands])
    return found


def sentences(html: str) -> list[Drawn]:
    """Return every number of every sentence that says where it comes from."""
    found = []
    for match in SENTENCE.finditer(html):
        body = match[0]
        link = re.search(r'<span class="origin"[^>]*>.*?href="[^"#]*#([\w-]+)"', body, re.DOTALL)
        text = " ".join(unescape(re.sub(r"<[^>]+>", "", body)).split())
        files = re.findall(r"<code>(runs/[^<]*)</code>", body)
        for value, shown in VALUE.findall(body):
            number = _number(value)
            if number is not None:
                found.append(Drawn(number, shown, text, link[1] if link else "", files))
    return found


def check(drawn: Drawn, known: dict[str, Plate], html: str, runs: Path, language: str) -> Drawn:
    """Note what is wrong with a number: its link, its files, its machine."""
    if f'id="{drawn.anchor}"' not in html:
        drawn.problems.append(f"its link leads nowhere: #{drawn.anchor}")
        return drawn
    plate = known.get(drawn.anchor) or _of_pair(known, drawn.anchor)
    if plate is None:
        drawn.problems.append(f"its link does not lead to a table: #{drawn.anchor}")
        return drawn
    if drawn.files and not set(drawn.files) & set(plate.files):
        drawn.problems.append(f"#{drawn.anchor} is drawn from {plate.files}, the sentence from {drawn.files}")
    paths = [path for pattern in drawn.files or plate.files for path in sorted(runs.parent.glob(pattern))]
    if not paths:
        drawn.problems.append(f"no file: {drawn.files or plate.files}")
    numbers: list[float] = []
    for path in paths:
        found, other = _read(path)
        numbers += found
        if path.name == "result.json" and other != (ELSEWHERE[language] in drawn.text):
            drawn.problems.append(f"{path} was {'not ' if other else ''}measured here, the sentence says otherwise")
    places = (("in the table", plate.values), ("in the file", numbers))
    drawn.how = next((how for how, values in places if _has(values, drawn.value)), "computed from the file")
    return drawn


@cache
def _read(path: Path) -> tuple[list[float], bool]:
    """All numbers of a file, and whether another machine wrote it."""
    text = path.read_text(encoding="utf-8")
    data = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
    return [one for item in data for one in _numbers(item)], "published" in path.parts or bool(data[0].get("published"))


def _of_pair(known: dict[str, Plate], anchor: str) -> Plate | None:
    """What a link to a pair's figure leads to: its first table, which is of the same file."""
    number = anchor.removeprefix("pair")
    found = [one for name, one in known.items() if number.isdigit() and re.fullmatch(rf"table{int(number):02}a?", name)]
    if not found:
        return None
    values, files, commands = (
        [x for one in found for x in getattr(one, key)] for key in ("values", "files", "commands")
    )
    return Plate(values, files, commands)


def draw(report: Path, runs: Path, language: str, count: int, seed: int) -> list[Drawn]:
    """Return numbers of the whole book in a language, drawn without replacement, each checked."""
    name = "book.html" if language == "en" else f"book.{language}.html"
    html = (report / name).read_text(encoding="utf-8")
    found = sentences(html)
    picked = random.Random(seed).sample(found, min(count, len(found)))
    known = plates(html)
    return [check(one, known, html, runs, language) for one in picked]


def wrong_ranges(html: str) -> list[str]:
    """Return what is shown as a mean with a range that does not hold it."""
    text = unescape(re.sub(r"<[^>]+>", "", html))
    wrong = []
    for match in RANGE.finditer(text):
        mean, low, high = (float(one.replace(",", "").replace("−", "-")) for one in match.groups())
        if not low <= mean <= high:
            wrong.append(match[0])
    return wrong


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [one for item in value.values() for one in _numbers(item)]
    if isinstance(value, list):
        return [one for item in value for one in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _has(values: list[float], wanted: float) -> bool:
    return any(abs(one - wanted) <= CLOSE * max(1.0, abs(wanted)) for one in values)


def main() -> int:
    """Print what was drawn."""
    parser = argparse.ArgumentParser(description="Draw numbers from the built book and trace them.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=40)
    asked = parser.parse_args()
    wrong = 0
    for language in ELSEWHERE:
        seed = asked.seed + (language == "zh")
        for one in draw(asked.report, asked.runs.resolve(), language, asked.count // 2, seed):
            wrong += bool(one.problems)
            print(f"{language} {one.shown:>12} -> #{one.anchor} {one.how} {'; '.join(one.problems) or 'ok'}")
            print(f"     {one.text[:160]}")
        name = "book.html" if language == "en" else f"book.{language}.html"
        ranges = wrong_ranges((asked.report / name).read_text(encoding="utf-8"))
        wrong += len(ranges)
        print("".join(f"{language} a range without its mean: {one}\n" for one in ranges), end="")
    print(f"{wrong} of {asked.count} are wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
