"""The script of the lecture, the slides that it makes, and what is said when they cannot be made."""

import re
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont

from browser.fixture_runs import write_runs
from tightgrad_lab import instruments, slides
from tightgrad_lab.cli import app as cli
from tightgrad_lab.report import ReportError
from tightgrad_lab.report.course import COURSE
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.papers import course_papers
from tightgrad_lab.report.texts import load
from tightgrad_lab.slides import reveal, script
from tightgrad_lab.slides.outline import PAPERS
from tightgrad_lab.slides.plates import cut, few, part
from tightgrad_lab.slides.words import load_words

LANGUAGES = ("en", "zh")
SECTIONS = [section.name for chapter in COURSE for section in chapter]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("slides")
    written = slides.build(write_runs(root / "runs"), root / "report")
    return {path.name: path.read_text(encoding="utf-8") for path in written}


@pytest.mark.parametrize("language", LANGUAGES)
def test_four_lessons_of_45_minutes(language: str) -> None:
    lessons = script.lessons(language)
    assert [lesson.minutes for lesson in lessons] == [45] * 4
    for lesson in lessons:
        assert lesson.slides[0].starts == 0
        assert lesson.slides[-1].starts + lesson.slides[-1].minutes == 45
        assert all(one.notes for one in lesson.slides)


def test_both_languages_have_the_same_slides() -> None:
    told = {language: [one for lesson in script.lessons(language) for one in lesson.slides] for language in LANGUAGES}
    facts = {
        language: [(one.name, one.lesson, one.minutes, len(one.points), len(one.notes)) for one in found]
        for language, found in told.items()
    }
    assert facts["en"] == facts["zh"]
    assert load_words("en").entries.keys() == load_words("zh").entries.keys()


def test_every_heading_has_two_points_a_figure_a_table_and_a_paper() -> None:
    told = {one.name: one for lesson in script.lessons("zh") for one in lesson.slides}
    for name in SECTIONS:
        assert len(told[f"{name} points"].points) == 2
        assert told[f"{name} table"].notes
    assert list(PAPERS) == SECTIONS
    assert set(PAPERS.values()) == {paper.role for paper in course_papers()}


def test_points_are_the_outline_s_word_for_word() -> None:
    points = [point for lesson in script.lessons("zh") for one in lesson.slides for point in one.points]
    assert points[0] == "梯度裁剪用于防止梯度爆炸，通过设置梯度的最大值，限制梯度的范数或值。"
    assert "常见问题包括梯度裁剪后的梯度消失、梯度累积中的显存溢出、梯度压缩后的精度损失等。" in points
    assert points[-1] == "回答关于梯度技术的具体技术问题。"
    assert len(points) == len(set(points)) == 2 * (len(SECTIONS) + 2)


def test_the_font_has_every_character() -> None:
    drawn = set(TTFont(figures.FONT_FILE).getBestCmap())
    folders = (script.HERE, Path(instruments.__file__).parent / "text")
    used = {char for folder in folders for path in folder.iterdir() for char in path.read_text(encoding="utf-8")}
    assert {char for char in used if ord(char) not in drawn} == {"\n"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_not_measured_says_the_command(built: dict[str, str], language: str) -> None:
    html = built[f"slides.{language}.html"]
    assert re.search(r'class="missing"><p>[^<]+</p><p class="source">[^<]+<code>tightgrad lab --only 7</code>', html)
    assert load(language)("site.title") in html
    assert "http" not in re.sub(r'href="https://[^"]+"|http://www\.w3\.org/[\w/.-]+', "", html)
    assert "{" not in re.sub(r"<(style|script)>.*?</\1>|<svg.*?</svg>", "", html, flags=re.DOTALL).replace(
        "{count}", ""
    ).replace("{shown}", "")


def test_a_tall_figure_is_cut_above_its_second_part_and_nothing_is_lost() -> None:
    figure = figures.canvas(7.6, 7.6)
    for number, y in enumerate((7.0, 5.0, 3.0)):
        figures.inch_text(figure, 0.1, y, f"line {number}", gid=figures.PART if number == 1 else None)
    place = cut(figure)
    assert place is not None
    assert 5.0 < place < 7.0
    parts = [part(figure, "p", "alt", band) for band in ((place, 7.6), (0.0, place))]
    assert [[f"line {number}" in one for number in range(3)] for one in parts] == [
        [True, False, False],
        [False, True, True],
    ]
    heights = [float(re.search(r'viewBox="0.00 \S+ \S+ (\S+)"', one)[1]) for one in parts]  # type: ignore[index]
    assert sum(heights) == pytest.approx(7.6 * 72, abs=0.1)
    assert cut(figures.canvas(7.6, 7.6)) is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_question_stands_on_the_slide_before_the_figure(built: dict[str, str], language: str) -> None:
    html = built[f"slides.{language}.html"]
    names = re.findall(r'<section id="(\S+)" data-timing="(\d+)"', html)
    order = [name for name, _ in names]
    assert order.index("s7-1-predict") + 1 == order.index("s7-1-points")
    assert sum(int(seconds) for _, seconds in names) == 4 * 45 * 60
    slide = html[html.index('id="s7-1-predict"') :].partition("</section>")[0]
    shown, _, notes = slide.partition("<aside")
    assert 'class="letter">C' in shown
    assert load(language)("predict.right") not in shown
    assert load(language)("predict.right") in notes
    last = re.findall(r'class="range">\D*\d+\D+(\d+)', html)[-1]
    assert int(last) == len(names)


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_part_of_a_tall_figure_has_a_slide_of_its_own(built: dict[str, str], language: str) -> None:
    html = built[f"slides.{language}.html"]
    order = re.findall(r'<section id="(\S+)" data-timing', html)
    second = [name for name in order if name.endswith("-figure")]
    assert second
    for name in second:
        assert order[order.index(name) - 1] == name.replace("-figure", "-points")
        slide = html[html.index(f'<section id="{name}"') :].partition("</section>")[0]
        assert load_words(language)("figure.more") in slide
        assert load_words(language)("figure.notes") in slide.partition("<aside")[2]
        assert slide.count("<figcaption") == 1


def test_few_rows_come_from_all_over_a_table() -> None:
    assert few(range(8)) == list(range(8))
    assert few(range(31)) == [0, 6, 12, 18, 24, 30]


def test_reveal_is_copied_with_its_licence_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reveal.copy_reveal(tmp_path)
    assert "MIT" in (tmp_path / "reveal.js").read_text(encoding="utf-8")[:300]
    assert "Hakim" in (tmp_path / "LICENSE-reveal.txt").read_text(encoding="utf-8")
    monkeypatch.setattr(reveal, "FILES", {"dist/other.js": "other.js"})
    with pytest.raises(ReportError, match=r"There is no .*other\.js; install a sphinx-revealjs that has it"):
        reveal.copy_reveal(tmp_path)
    monkeypatch.setattr(reveal, "find_spec", lambda name: None)
    with pytest.raises(ReportError, match=r"pip install 'tightgrad\[lab\]'"):
        reveal.copy_reveal(tmp_path)


def test_a_heading_without_minutes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "HERE", tmp_path)
    (tmp_path / "en.md").write_text("# Lesson 1\n\n## title\n\nWords.\n", encoding="utf-8")
    with pytest.raises(ReportError, match=r"en\.md: '## title' is not a name and its minutes"):
        script.lessons("en")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs := tmp_path / "runs").mkdir()
    assert cli.run(["slides", "--runs", str(runs), "--report", str(tmp_path / "report")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "report" / f"slides.{one}.html") for one in LANGUAGES]
    assert cli.run(["slides", "--runs", str(tmp_path / "none")]) == 2
    assert "run `tightgrad lab` first" in capsys.readouterr().err
