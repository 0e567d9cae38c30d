"""The page follows the course: every heading of it stands in the table of contents and leads to its section."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from support.waiting import patience
from tightgrad_lab import report
from tightgrad_lab.report.claims import JUDGES
from tightgrad_lab.report.course import CLAIMS, COURSE, SNIPPETS
from tightgrad_lab.report.pairs import PAIRS

HEADINGS = {
    "zh": (
        ("1", "梯度裁剪", "概念"),
        ("1.1", "概念"),
        ("1.2", "应用场景", "循环神经网络", "LSTM"),
        ("2", "梯度累积", "概念"),
        ("2.1", "概念"),
        ("2.2", "应用场景", "内存"),
        ("3", "梯度压缩", "概念"),
        ("3.1", "概念"),
        ("3.2", "应用场景", "分布式"),
        ("4", "梯度裁剪在大模型训练中的作用", "实现"),
        ("4.1", "作用"),
        ("4.2", "实现", "TensorFlow", "PyTorch"),
        ("4.3", "全局裁剪", "逐元素裁剪"),
        ("5", "梯度累积在大模型训练中的作用", "实现"),
        ("5.1", "作用"),
        ("5.2", "实现", "手动"),
        ("5.3", "实现", "框架"),
        ("6", "梯度压缩在大模型训练中的作用", "实现"),
        ("6.1", "作用"),
        ("6.2", "实现"),
        ("6.3", "8 位", "16 位", "量化"),
        ("6.4", "剪枝"),
        ("6.5", "稀疏化", "重要的梯度"),
        ("7", "组合", "常见问题", "解决方案"),
        ("7.1", "结合策略"),
        ("7.2", "常见问题", "解决方案"),
        ("8", "案例"),
        ("8.1", "图像分类"),
        ("8.2", "文本分类", "翻译"),
        ("8.3", "时间序列"),
        ("summary", "总结"),
        ("references", "参考文献"),
        ("faq", "问题", "讨论"),
    ),
    "en": (
        ("1", "clipping", "concept"),
        ("1.1", "concept"),
        ("1.2", "used", "recurrent networks", "LSTM"),
        ("2", "accumulation", "concept"),
        ("2.1", "concept"),
        ("2.2", "used", "memory"),
        ("3", "compression", "concept"),
        ("3.1", "concept"),
        ("3.2", "used", "many machines"),
        ("4", "Clipping in large-model training", "role", "implemented"),
        ("4.1", "role"),
        ("4.2", "implemented", "TensorFlow", "PyTorch"),
        ("4.3", "Global", "element-wise"),
        ("5", "Accumulation in large-model training", "role", "implemented"),
        ("5.1", "role"),
        ("5.2", "by hand", "loop"),
        ("5.3", "features of frameworks"),
        ("6", "Compression in large-model training", "role", "implemented"),
        ("6.1", "role"),
        ("6.2", "implemented"),
        ("6.3", "Quantisation", "8", "16"),
        ("6.4", "Pruning"),
        ("6.5", "Sparsification", "important gradients"),
        ("7", "strategies", "common problems", "cures"),
        ("7.1", "combine"),
        ("7.2", "problems", "cures"),
        ("8", "Cases"),
        ("8.1", "Image classification"),
        ("8.2", "text classification", "translation"),
        ("8.3", "Time-series"),
        ("summary", "Summary"),
        ("references", "References"),
        ("faq", "Questions"),
    ),
}
"""Where each heading of the course must lead, and what its entry must say."""


class Contents(HTMLParser):
    """The entries of the table of contents: target -> text; and the ids and headings of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.entries: dict[str, str] = {}
        self.levels: list[int] = []
        self.ids: set[str] = set()
        self._nav, self._target = False, ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        self._nav |= tag == "nav"
        if self._nav and tag == "a":
            self._target = str(found["href"])[1:]
            self.entries.setdefault(self._target, "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "nav":
            self._nav = False
        if tag == "a":
            self._target = ""

    def handle_data(self, data: str) -> None:
        if self._nav and self._target:
            self.entries[self._target] += data


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contents]:
    root = tmp_path_factory.mktemp("empty")
    (root / "runs").mkdir()
    pages = report.build(root / "runs", root / "report")
    return dict(zip(("en", "zh"), (Contents(page.read_text(encoding="utf-8")) for page in pages), strict=True))


def _anchor(place: str) -> str:
    chapter, _, section = place.partition(".")
    return f"section{chapter}-{section}" if section else f"chapter{place}" if place.isdigit() else place


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_heading_of_the_course_is_in_the_contents(contents: dict[str, Contents], language: str) -> None:
    page = contents[language]
    for place, *words in HEADINGS[language]:
        entry = page.entries[_anchor(place)]
        assert _anchor(place) in page.ids
        for word in words:
            assert word in entry, f"{place}: {entry!r} lacks {word!r}"


def test_the_course_has_no_section_that_the_contents_lack(contents: dict[str, Contents]) -> None:
    for page in contents.values():
        assert {section.anchor for chapter in COURSE for section in chapter} <= page.entries.keys()
        assert len(HEADINGS["en"]) == len(HEADINGS["zh"])


def test_headings_skip_no_level(contents: dict[str, Contents]) -> None:
    for page in contents.values():
        assert page.levels[0] == 1
        assert all(after - before <= 1 for before, after in zip(page.levels, page.levels[1:], strict=False))


def test_every_pair_and_every_claim_has_one_place() -> None:
    sections = [section for chapter in COURSE for section in chapter]
    assert [name for section in sections for name in section.pairs] == [pair.name for pair in PAIRS]
    assert all(pair.chapter == s.chapter for s in sections for pair in PAIRS if pair.name in s.pairs)
    assert sorted(CLAIMS) == sorted(JUDGES)
    assert len(set(CLAIMS)) == len(CLAIMS)


@pytest.mark.parametrize("path", sorted(SNIPPETS.glob("*.txt")), ids=lambda path: path.stem)
def test_code_on_the_page_runs(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    if "import tensorflow" in source:
        pytest.importorskip("tensorflow")
    done = subprocess.run(
        [sys.executable, "-"], input=source, capture_output=True, text=True, check=False, timeout=patience(120)
    )
    assert done.returncode == 0, done.stderr
    promised = re.findall(r"^print\(.*#\s+([-\d.]+)", source, re.MULTILINE)
    assert [line for line in done.stdout.splitlines() if line][: len(promised)] == promised


def test_every_snippet_is_shown() -> None:
    shown = {name for chapter in COURSE for section in chapter for name in section.snippets}
    assert shown == {path.name for path in SNIPPETS.glob("*.txt")}
