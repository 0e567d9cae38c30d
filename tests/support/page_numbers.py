"""The numbers of a page, each with the files and the command that stand beside it."""

import re
from dataclasses import dataclass
from html.parser import HTMLParser

Key = tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """A number of the page.

    Args:
        value: as the page keeps it for machines.
        files: glob patterns, from the folder that holds runs/.
        commands: what makes it again.
    """

    value: str
    files: tuple[str, ...]
    commands: tuple[str, ...]


class PageNumbers(HTMLParser):
    """Reads the cells of tables, and the numbers in sentences of evidence and of the text.

    A sentence of the text leads to a table, whose files and command are those of its numbers.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[Key, Shown] = {}
        self._plate = self._owner = self._row = self._code = ""
        self._column = self._sentence = 0
        self._evidence: Key = ()
        self._waiting: list[tuple[Key, str]] = []
        self._files: list[str] = []
        self._commands: list[str] = []
        self._sentences: dict[Key, int] = {}
        self._in_sentence = False
        self._pair = self._origin = self._name = ""
        self._paragraph: list[str] = []
        self._said: list[tuple[str, list[str], str]] = []
        self._behind: dict[str, tuple[set[str], set[str]]] = {}
        self.feed(html)
        for name, values, pair in self._said:
            files, commands = self._behind.get(pair, (set(), set()))
            for i, value in enumerate(values):
                shown = Shown(value, tuple(sorted(files)), tuple(sorted(commands)))
                self.found["measured", name, str(i)] = shown

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        classes = found.get("class", "").split()
        if re.fullmatch(r"pair\d+", found.get("id", "")):
            self._pair = found["id"]
        if "tabular" in classes:
            self._plate = found["id"]
        if tag == "p":
            self._paragraph, self._origin = [], ""
        if tag == "data":
            self._paragraph.append(found["value"])
            if self._plate:
                self._add((self._plate, "data", str(len(self._waiting))), found["value"])
        if tag == "span" and "origin" in classes:
            self._origin, self._name = "?", found["data-name"]
        if tag == "a" and self._origin == "?":
            self._origin = found["href"].removeprefix("#")
        if tag == "tr":
            self._column = 0
        if self._plate and tag in ("th", "td") and "data-value" in found:
            if self._column == 0:
                self._row = found["data-value"]
            else:
                self._add((self._plate, self._row, str(self._column)), found["data-value"])
            self._column += 1
        if tag in ("li", "h3") and found.get("id", "").startswith(("claim-", "faq-")):
            self._owner = found["id"]
        if tag == "p" and "evidence" in classes:
            self._in_sentence = True
            self._evidence = (self._owner, found.get("data-name", ""))
            self._sentences[self._evidence] = self._sentences.get(self._evidence, 0) + 1
            self._sentence = 0
        if tag == "data" and self._in_sentence:
            name = f"{self._evidence[1]} {self._sentences[self._evidence]}"
            self._add((self._owner, name, str(self._sentence)), found["value"])
            self._sentence += 1
        if tag == "code" and (self._plate or self._in_sentence):
            self._code = "command" if "command" in classes else "file"

    def handle_data(self, data: str) -> None:
        if self._code == "command":
            self._commands.append(data)
        elif self._code == "file":
            self._files.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._origin:
            if not self._in_sentence:  # sentences of evidence have keys of their own
                self._said.append((self._name, self._paragraph, self._origin))
            self._origin = ""
        if tag == "code":
            self._code = ""
        if (tag == "section" and self._plate) or (tag == "p" and self._in_sentence):
            files = tuple(name for name in self._files if "/" in name)
            if self._plate:
                for place in (self._pair, self._plate):
                    behind = self._behind.setdefault(place, (set(), set()))
                    behind[0].update(name for name in files if name.startswith("runs/"))
                    behind[1].update(self._commands)
            for key, value in self._waiting:
                self.found[key] = Shown(value, files, tuple(self._commands))
            self._waiting, self._files, self._commands = [], [], []
            self._plate, self._in_sentence = ("" if tag == "section" else self._plate), False

    def _add(self, key: Key, value: str) -> None:
        try:
            float(value)
        except ValueError:
            return
        self._waiting.append((key, value))
