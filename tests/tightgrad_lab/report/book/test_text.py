"""The text of the book: titles, shape, length, and what both languages share."""

import re
from pathlib import Path

import pytest

from tightgrad_lab.report.book import chapters
from tightgrad_lab.report.book.facts import MEASURED
from tightgrad_lab.report.book.glossary import known_symbols, terms
from tightgrad_lab.report.book.mathematics import symbols
from tightgrad_lab.report.course import COURSE
from tightgrad_lab.report.papers import citations, known
from tightgrad_lab.schema import NUMBERS

LANGUAGES = ("en", "zh")
NAMES = tuple(f"chapter{number}" for number in range(1, 9))
FILES = (*NAMES, "summary", "questions")

TITLES = (
    ("梯度裁剪的基本概念与应用", "梯度裁剪的基本概念", "梯度裁剪的应用场景"),
    ("梯度累积的基本概念与应用", "梯度累积的基本概念", "梯度累积的应用场景"),
    ("梯度压缩的基本概念与应用", "梯度压缩的基本概念", "梯度压缩的应用场景"),
    ("梯度裁剪在大模型训练中的作用", "梯度裁剪的作用", "梯度裁剪的实现方法"),
    ("梯度累积在大模型训练中的作用", "梯度累积的作用", "梯度累积的实现方法"),
    ("梯度压缩在大模型训练中的作用", "梯度压缩的作用", "梯度压缩的实现方法"),
    ("实现梯度裁剪、梯度累积与梯度压缩的策略", "结合多种技术的训练策略", "实现中的常见问题与解决方案"),
    (
        "案例分析与实战",
        "案例分析一：图像分类中的梯度技术应用",
        "案例分析二：自然语言处理中的梯度技术应用",
        "案例分析三：时间序列预测中的梯度技术应用",
    ),
)
"""Of the outline, word for word."""

SHAPE = {
    "en": (
        "Question",
        "Intuition",
        "Derivation",
        "Worked example",
        "What was measured",
        "From scratch",
        "Pitfalls",
        "Exercises",
    ),
    "zh": ("问题", "直观理解", "推导", "算例", "实测", "从零实现", "常见误区", "练习"),
}
CASE_SHAPE = {
    "en": ("Question", "Task", "What was measured", "Analysis", "Pitfalls", "Exercises"),
    "zh": ("问题", "任务", "实测", "分析", "常见误区", "练习"),
}


def source(language: str, name: str) -> str:
    return (Path(chapters.__file__).parent / language / f"{name}.md").read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def formulas(text: str) -> list[str]:
    plain = re.sub(r"`[^`]*`", "", without_code(text))
    blocks = re.findall(r"\$\$(.+?)\$\$", plain, re.DOTALL)
    return blocks + re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.+?\$\$", "", plain, flags=re.DOTALL))


def teaching(text: str) -> str:
    """What is left of a text that teaches: no code, formula, table, directive or mark-up."""
    plain = without_code(text)
    plain = re.sub(r"\$\$.+?\$\$|\$[^$]+\$|`[^`]*`", " ", plain, flags=re.DOTALL)
    lines = [line for line in plain.splitlines() if not re.match(r"[@|#]|:::$|---$", line)]
    plain = "\n".join(re.sub(r"^::: \w+", "", line) for line in lines)
    plain = re.sub(r"\{[\w:]+\}|\[@[\w-]+\]|\]\(#[\w-]+\)", " ", plain)
    return re.sub(r"[*\[\]]", "", plain)


@pytest.mark.parametrize("number", range(1, 9))
def test_titles_are_those_of_the_outline(number: int) -> None:
    chapter = chapters.read("zh", f"chapter{number}")
    assert (chapter.title, *(section.title for section in chapter.sections)) == TITLES[number - 1]
    other = chapters.read("en", f"chapter{number}")
    assert len(other.sections) == len(chapter.sections) == len(COURSE[number - 1])


def test_english_titles_differ_from_each_other() -> None:
    found = [one.title for name in NAMES for one in chapters.read("en", name).sections]
    assert len(set(found)) == len(found) == 17


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NAMES)
def test_every_section_has_the_fixed_shape(language: str, name: str) -> None:
    shape = CASE_SHAPE if name == "chapter8" else SHAPE
    for section in chapters.read(language, name).sections:
        headings = re.findall(r"^### (.+)$", without_code(section.source), re.MULTILINE)
        kept = [word for heading in headings for word in shape[language] if heading.startswith(word)]
        assert kept == list(shape[language]), section.title
        assert "::: predict " in section.source, section.title


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NAMES)
def test_every_chapter_has_goals_and_ends_with_the_three_boxes(language: str, name: str) -> None:
    chapter = chapters.read(language, name)
    assert chapter.intro.startswith("::: goals\n")
    assert re.findall(r"^::: (\w+)", chapter.closing, re.MULTILINE) == ["course", "we", "literature"]


@pytest.mark.parametrize("name", NAMES)
def test_figures_stand_in_their_sections(name: str) -> None:
    for language in LANGUAGES:
        for course, text in zip(COURSE[int(name[-1]) - 1], chapters.read(language, name).sections, strict=True):
            assert tuple(re.findall(r"^@figure (\w+)$", text.source, re.MULTILINE)) == course.pairs
            assert len(re.findall(r"^@verdicts$", text.source, re.MULTILINE)) == 1


@pytest.mark.parametrize("name", FILES)
def test_both_languages_show_and_measure_the_same(name: str) -> None:
    def skeleton(language: str) -> list[str]:
        text = without_code(source(language, name))
        return re.findall(r"^@[\w ]+$|^::: \w+", text, re.MULTILINE)

    def measured(language: str) -> list[tuple[str, set[str]]]:
        found = re.findall(r"^@measured (\w+)\n(.+?)(?:\n\n|\Z)", source(language, name), re.MULTILINE | re.DOTALL)
        return [(key, set(re.findall(r"\{(\w+)\}", text))) for key, text in found]

    assert skeleton("en") == skeleton("zh")
    assert measured("en") == measured("zh")
    cited = [sorted(re.findall(r"\[@([\w-]+)\]", source(language, name))) for language in LANGUAGES]
    assert cited[0] == cited[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_in_the_text_are_known(language: str) -> None:
    anchors = {f"term-{term.name}" for term in terms(language)}
    for name in FILES:
        text = without_code(source(language, name))
        assert set(re.findall(r"\{(?:fig|tab):(\w+)\}", text)) <= NUMBERS.keys()
        assert set(re.findall(r"\[@([\w-]+)\]", text)) <= citations(language).keys()
        assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= anchors
        assert set(re.findall(r"^@(?:measured|missing) (\w+)", text, re.MULTILINE)) <= MEASURED.keys()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_symbol_of_every_formula_is_in_the_glossary(language: str) -> None:
    everything = {letter for symbol in known_symbols(language) for letter in symbol.letters}
    used = {letter for name in FILES for latex in formulas(source(language, name)) for letter in symbols(latex)}
    assert used - everything == set()
    assert len(used) > 30


def test_both_glossaries_have_the_same_entries() -> None:
    assert [term.name for term in terms("en")] == [term.name for term in terms("zh")]
    assert [(a.word, a.other) for a in terms("en")] != [(b.word, b.other) for b in terms("zh")]
    assert [symbol.latex for symbol in known_symbols("en")] == [symbol.latex for symbol in known_symbols("zh")]


def test_every_paper_of_the_course_is_cited() -> None:
    for language in LANGUAGES:
        text = "".join(source(language, name) for name in NAMES)
        cited = set(re.findall(r"\[@([\w-]+)\]", text))
        assert {paper["role"] for paper in known()["course"]} <= cited


def test_every_text_is_short_enough_to_edit() -> None:
    folder = Path(chapters.__file__).parent
    for path in folder.glob("*/*.md"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 400, path.name


def test_the_book_is_long_enough_to_teach() -> None:
    """Words and characters of sentences; no code, formulas, tables, captions or settings are counted."""
    english = " ".join(teaching(source("en", name)) for name in FILES)
    chinese = "".join(teaching(source("zh", name)) for name in FILES)
    assert len(re.findall(r"[A-Za-z][A-Za-z'’-]*", english)) >= 8_000
    assert len(re.findall(r"[\u4e00-\u9fff]", chinese)) >= 12_000
    assert "$" not in english + chinese
    assert "import torch" not in english + chinese


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_term_is_linked_from_the_text(language: str) -> None:
    text = "".join(source(language, name) for name in FILES)
    assert {term.name for term in terms(language)} == set(re.findall(r"\]\(#term-([\w-]+)\)", text))
