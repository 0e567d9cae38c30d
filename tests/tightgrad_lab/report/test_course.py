"""The page follows the course: every heading of it stands in the table of contents and leads to its section."""

import re
from html.parser import HTMLParser

import pytest

from tightgrad_lab import report
from tightgrad_lab.report.book.chapters import read
from tightgrad_lab.report.claims import JUDGES
from tightgrad_lab.report.course import CLAIMS, COURSE
from tightgrad_lab.report.pairs import PAIRS

HEADINGS = {
    "zh": (
        ("1", "梯度裁剪的基本概念与应用"),
        ("1.1", "梯度裁剪的基本概念"),
        ("1.2", "梯度裁剪的应用场景"),
        ("2", "梯度累积的基本概念与应用"),
        ("2.1", "梯度累积的基本概念"),
        ("2.2", "梯度累积的应用场景"),
        ("3", "梯度压缩的基本概念与应用"),
        ("3.1", "梯度压缩的基本概念"),
        ("3.2", "梯度压缩的应用场景"),
        ("4", "梯度裁剪在大模型训练中的作用"),
        ("4.1", "梯度裁剪的作用"),
        ("4.2", "梯度裁剪的实现方法"),
        ("5", "梯度累积在大模型训练中的作用"),
        ("5.1", "梯度累积的作用"),
        ("5.2", "梯度累积的实现方法"),
        ("6", "梯度压缩在大模型训练中的作用"),
        ("6.1", "梯度压缩的作用"),
        ("6.2", "梯度压缩的实现方法"),
        ("7", "实现梯度裁剪、梯度累积与梯度压缩的策略"),
        ("7.1", "结合多种技术的训练策略"),
        ("7.2", "实现中的常见问题与解决方案"),
        ("8", "案例分析与实战"),
        ("8.1", "案例分析一：图像分类中的梯度技术应用"),
        ("8.2", "案例分析二：自然语言处理中的梯度技术应用"),
        ("8.3", "案例分析三：时间序列预测中的梯度技术应用"),
        ("summary", "总结与讨论"),
        ("references", "参考文献"),
        ("faq", "讨论与答疑"),
    ),
    "en": (
        ("1", "clipping", "concepts", "applications"),
        ("1.1", "concepts"),
        ("1.2", "Applications"),
        ("2", "accumulation", "concepts", "applications"),
        ("2.1", "concepts"),
        ("2.2", "Applications"),
        ("3", "compression", "concepts", "applications"),
        ("3.1", "concepts"),
        ("3.2", "Applications"),
        ("4", "role", "clipping", "large-model training"),
        ("4.1", "does"),
        ("4.2", "implemented"),
        ("5", "role", "accumulation", "large-model training"),
        ("5.1", "does"),
        ("5.2", "implemented"),
        ("6", "role", "compression", "large-model training"),
        ("6.1", "does"),
        ("6.2", "implemented"),
        ("7", "Strategies"),
        ("7.1", "combine"),
        ("7.2", "problems", "solutions"),
        ("8", "Case studies"),
        ("8.1", "image classification"),
        ("8.2", "language"),
        ("8.3", "time-series"),
        ("summary", "Summary"),
        ("references", "References"),
        ("faq", "Questions"),
    ),
}
"""Where each heading of the outline must lead, and what its entry must say: in Chinese, word for word."""

SUBJECTS = {
    "zh": {
        "section1-2": ("循环", "LSTM"),
        "section2-2": ("内存",),
        "section3-2": ("进程", "链路"),
        "section4-2": ("TensorFlow", "PyTorch", "全局范数", "按值裁剪"),
        "section5-2": ("手写", "框架"),
        "section6-2": ("8 位", "16 位", "量化", "剪枝", "稀疏化", "重要的梯度"),
        "section8-2": ("分类", "翻译"),
    },
    "en": {
        "section1-2": ("recurrent network", "LSTM"),
        "section2-2": ("memory",),
        "section3-2": ("processes", "link"),
        "section4-2": ("TensorFlow", "PyTorch", "global norm", "by value"),
        "section5-2": ("By hand", "Frameworks"),
        "section6-2": ("8 bits", "16 bits", "QSGD", "Pruning", "Sparsification", "important"),
        "section8-2": ("Classification", "Translation"),
    },
}
"""What a section must speak of, by the points of the outline."""


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
    report.build(root / "runs", root / "report")
    names = {"en": "book.html", "zh": "book.zh.html"}
    return {
        language: Contents((root / "report" / name).read_text(encoding="utf-8")) for language, name in names.items()
    }


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


@pytest.mark.parametrize("language", ["en", "zh"])
def test_sections_speak_of_the_points_of_the_outline(language: str) -> None:
    for chapter, sections in enumerate(COURSE, 1):
        for section, text in zip(sections, read(language, f"chapter{chapter}").sections, strict=True):
            for word in SUBJECTS[language].get(section.anchor, ()):
                assert word in text.source, f"{section.name}: {word}"
