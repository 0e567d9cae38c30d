"""Markdown becomes HTML: formulas, citations, boxes, measured sentences."""

import json
from pathlib import Path

import pytest

from browser.fixture_runs import write_runs
from support.drawing import write_result
from tightgrad_lab.report.book import chapters
from tightgrad_lab.report.book.chapters import parts
from tightgrad_lab.report.book.facts import MEASURED
from tightgrad_lab.report.book.glossary import defined
from tightgrad_lab.report.book.library import Library
from tightgrad_lab.report.book.markdown import Renderer
from tightgrad_lab.report.book.mathematics import mathml, symbols
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.measured.files import Runs
from tightgrad_lab.report.papers import citations
from tightgrad_lab.report.texts import load
from tightgrad_lab.schema import published_files


def renderer(language: str = "en") -> Renderer:
    return Renderer(load(language), citations(language))


def library(root: Path, language: str = "en") -> Library:
    root.mkdir(exist_ok=True)
    return Library(Runs(root), load(language))


def html(source: str, language: str = "en", known: dict[str, str] | None = None) -> str:
    found = parts(source, renderer(language), lambda name, text: (known or {}).get(name))
    return "".join(str(part.body) for part in found)


def test_formulas_become_mathml_and_define_their_symbols_once() -> None:
    found = html("$$g\\cdot c$$\n\nand again\n\n$$\\eta\\,c$$\n")
    assert found.count("<math") == 2 + 3
    assert found.count('class="where"') == 2
    assert found.count("bound of a clip") == 1


def test_norm_bars_keep_their_size() -> None:
    assert mathml(r"\lVert g\rVert_2").count('stretchy="false">&#x02016;') == 2


@pytest.mark.parametrize(
    ("latex", "expected"),
    [
        (r"g_k\leftarrow\eta\min(1,c)", ["g", "k", r"\eta", "c"]),
        (r"\operatorname{sign}(v_i)\,\text{of all}", ["v", "i"]),
        (r"\mathbb{E}\left[Q(v)\right]", [r"\mathbb{E}", "Q", "v"]),
    ],
)
def test_symbols_of_a_formula(latex: str, expected: list[str]) -> None:
    assert symbols(latex) == expected


def test_a_symbol_with_a_subscript_of_its_own_is_not_its_letter() -> None:
    assert [one.latex for one in defined(r"\beta_2^{H/B}", "en", set())] == ["B", r"\beta_2", "H"]
    assert [one.latex for one in defined(r"\frac{m}{\beta}", "en", set())] == ["m", r"\beta"]
    assert [one.latex for one in defined(r"K(t_f+t_b)", "en", set())] == ["K", "t_f", "t_b"]


def test_citations_and_figures_are_links() -> None:
    found = html("By [@pascanu], see {fig:clip_geometry} and {tab:link_speeds}.")
    assert 'href="#ref-arxiv-org-abs-1211-5063">Pascanu et al. (2013)</a>' in found
    assert 'href="#pair1">Figure\u00a01</a>' in found
    assert 'href="#pair6">Table\u00a06</a>' in found
    assert "Pascanu 等（2013）" in html("[@pascanu]", "zh")


def test_boxes_and_folded_answers() -> None:
    found = html("::: course\nIt says so.\n:::\n\n::: predict What is $c$?\nA bound.\n:::\n")
    assert '<div class="box course">' in found
    assert '<details class="predict"><summary>What is <span class="nobr"><math' in found
    assert found.index("</summary>") < found.index("A bound.") < found.index("</details>")


def test_mark_up_in_the_text_is_shown_not_run() -> None:
    assert "<script>" not in html("a <script>alert(1)</script> b")


def test_lines_of_chinese_join_without_a_space() -> None:
    assert "前向传播反向传播" in html("前向传播\n反向传播", "zh")


def test_a_measured_sentence_stands_only_where_it_was_measured() -> None:
    source = "@measured turn\nIt is {norm}.\n\n@missing turn\nNobody knows.\n\nThe end.\n"
    assert "Nobody knows." in html(source)
    assert "It is" not in html(source)
    found = html(source, known={"turn": "It is 1."})
    assert "It is 1." in found
    assert "Nobody knows." not in found
    assert "The end." in found


def test_a_measured_sentence_in_a_box_leaves_the_box_closed() -> None:
    found = html("::: we\nFirst.\n\n@measured turn\nIt is {norm}.\n:::\n\nAfter.\n")
    assert found.index("</div>") < found.index("After.")


def _muon(root: Path) -> Path:
    runs = [{"spikes": 1, "final_loss": 2.0}, {"spikes": 8, "final_loss": 3.0}]
    table = [{"optimizer": "muon", "method": "none", "runs": runs}]
    return write_result(root, "muon", {"spikes": {"outliers": 4}}, {}, table)


def test_results_of_a_study_fill_a_sentence(tmp_path: Path) -> None:
    own = library(_muon(tmp_path / "runs"))
    shown = own.renderer._released(str(own.sentence("muon", "{muon_unclipped} of {outliers}.")))
    assert '<data value="4.5">4.50</data> of <data value="4">4</data>.' in shown
    assert 'href="#pair7"' in shown
    assert MEASURED["muon"](Runs(library(tmp_path / "empty").runs.root)) is None


def test_the_machine_of_a_published_number_is_named_where_it_stands(tmp_path: Path) -> None:
    published = next(path for path in published_files() if path.stem == "large_batches")
    root = tmp_path / "runs"
    for folder in (root, root / "published"):
        (folder / "large_batches").mkdir(parents=True)
    (root / "published" / "large_batches" / "result.json").write_bytes(published.read_bytes())
    own = library(root)
    text = own.renderer._released(str(own.sentence("batches", "{base}.")))
    assert "measured on another machine: " in text
    data = json.loads(published.read_text(encoding="utf-8")) | {"command": "tightgrad lab --only 9 --full"}
    (root / "large_batches" / "result.json").write_text(json.dumps(data | {"published": None}), encoding="utf-8")
    (root / "published" / "large_batches" / "result.json").unlink()
    assert "another machine" not in own.renderer._released(str(own.sentence("batches", "{base}.")))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_book_renders_with_and_without_measurements(tmp_path: Path, language: str) -> None:
    bare = library(tmp_path / "bare", language)
    full = library(write_runs(tmp_path / "runs", seeds=3), language)
    texts = []
    for one in (bare, full):
        found = [part for chapter in one.chapters() for section in chapter.sections for part in section.parts]
        texts.append("".join(str(part.body) for part in found))
    assert "<data" not in texts[0]
    assert texts[1].count("<data") > 5
    assert len(full.questions()[2]) == 12
    assert [one.name for one in full.questions()[2] if one.name] == [
        "max_norm",
        "learning_rate",
        "codec",
        "combine",
        "short",
    ]


def test_a_citation_in_brackets_has_no_second_pair() -> None:
    assert ">Pascanu et al., 2013</a>)" in html("a bound ([@pascanu])")
    assert ">Pascanu 等，2013</a>）" in html("一个上限（[@pascanu]）", "zh")


def test_punctuation_stays_with_its_formula() -> None:
    found = html("梯度 $g$，上限 $c$。", "zh")
    assert found.count('<span class="nobr"><math') == 2
    assert "</math>，</span>" in found
    assert "</math>。</span>" in found
    assert "</math></span>，</span>" in html(r"因为 $\sqrt{1-\delta}\le 1-\delta/2$，所以", "zh")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[@nobody]", r"\[@nobody\] is no key of references\.json; known are .*pascanu"),
        ("see {fig:nothing}", r"\{fig:nothing\} names no experiment; known are clip_geometry"),
        ("@measured nothing\nIt is {x}.", r"@measured nothing names no measurement; known are turn"),
        ("$$x_a_b$$", "The formula 'x_a_b' is not understood: DoubleSubscriptsError"),
        (r"$$\foo x$$", r"The formula .* has the command \\foo, which is not known"),
    ],
)
def test_what_a_teacher_mistypes_is_named_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    own = library(tmp_path / "runs")
    monkeypatch.setattr(chapters, "read", lambda language, name: chapters.Chapter("Title", text, (), ""))
    with pytest.raises(ReportError, match=r"book/en/summary\.md: " + message):
        own.page("summary")


def test_a_fact_that_is_not_measured_is_named(tmp_path: Path) -> None:
    own = library(_muon(tmp_path / "runs"))
    with pytest.raises(ReportError, match="@measured muon has no nothing; its facts are muon_unclipped"):
        own.sentence("muon", "{nothing} and {muon_unclipped}.")


def test_a_chapter_with_another_number_of_sections_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chapters, "read", lambda language, name: chapters.Chapter("Title", "Text.", (), ""))
    with pytest.raises(ReportError, match=r"book/en/chapter1\.md has 0 sections \(## headings\); the course has 2"):
        library(tmp_path / "runs").chapters()
