"""The report as a whole: files out, both languages, placeholders, determinism."""

import csv
import importlib
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from browser.fixture_runs import COMBINATIONS, flow, summary, write_run, write_runs
from support.drawing import without_figures, without_png
from tightgrad_lab import report
from tightgrad_lab.report.pairs import PAIRS

LANGUAGES = ("en", "zh")
FIGURES = ("figure13", "figure15", "figure15b")
TABLES = ("table13", "table13b", "table15")


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[tuple[str, str, dict[str, str | None]]] = []
        self.values: list[str] = []
        self.figures: dict[str, list[str]] = {}
        self.svg_labels: list[str | None] = []
        self._stack: list[str] = []
        self._figure = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        for key in ("href", "src", "xlink:href"):
            if key in found:
                self.links.append((tag, str(found[key]), found))
        if "data-value" in found:
            self.values.append(str(found["data-value"]))
        if tag == "data":
            self.values.append(str(found["value"]))
        if tag == "svg":
            self.svg_labels.append(found.get("aria-label"))
        if tag == "figure":
            self._figure = str(found.get("id"))
            self.figures[self._figure] = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "figure":
            self._figure = ""

    def handle_data(self, data: str) -> None:
        if self._figure:
            self.figures[self._figure].append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("lab") / "runs")


@pytest.fixture(scope="module")
def out(runs: Path) -> Path:
    report.build(runs, runs.parent / "report")
    return runs.parent / "report"


@pytest.fixture(scope="module")
def html(out: Path) -> dict[str, str]:
    names = {"en": "book.html", "zh": "book.zh.html"}
    return {language: (out / name).read_text(encoding="utf-8") for language, name in names.items()}


@pytest.fixture(scope="module")
def pages(html: dict[str, str]) -> dict[str, Page]:
    return {language: Page(text) for language, text in html.items()}


def built(runs: Path, out: Path) -> list[Path]:
    """The whole book in both languages, whose figures nobody looks at."""
    with without_figures():
        report.build(runs, out)
    return [out / "book.html", out / "book.zh.html"]


def drawn(runs: Path, out: Path, language: str) -> Path:
    """The whole book in one language, without the images beside its figures."""
    with pytest.MonkeyPatch.context() as patch, without_png():
        patch.setattr(importlib.import_module("tightgrad_lab.report.build"), "LANGUAGES", (language,))
        (page,) = report.build(runs, out)
    return page.with_name(page.name.replace("index", "book"))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_same_files_same_report_and_both_pages_are_given_back_english_first(
    runs: Path, out: Path, tmp_path: Path
) -> None:
    assert report.build(runs, tmp_path) == [tmp_path / "index.html", tmp_path / "index.zh.html"]
    pictures = sorted(out.rglob("*.png"))
    assert [path.stem for path in pictures] == sorted(path.stem for path in (out / "figures").glob("*.svg"))
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    for path in sorted(out.rglob("*.*")):
        assert (tmp_path / path.relative_to(out)).read_bytes() == path.read_bytes(), path.name


def test_both_languages_have_the_same_numbers(pages: dict[str, Page]) -> None:
    assert sorted(pages["en"].values) == sorted(pages["zh"].values)
    assert len(pages["en"].values) > 150


@pytest.mark.parametrize("slug", FIGURES)
def test_figures_of_both_languages_have_the_same_numbers(out: Path, slug: str) -> None:
    found = []
    for language in LANGUAGES:
        texts = [node.text or "" for node in ET.parse(out / "figures" / f"{slug}.{language}.svg").iter() if node.text]
        joined = " ".join(text for text in texts if text.strip())
        found.append(sorted(re.findall(r"\d[\d.,]*", joined)))
    assert found[0] == found[1]
    assert found[0]


def test_every_pair_is_there_or_says_it_is_missing(html: dict[str, str], pages: dict[str, Page]) -> None:
    assert [pair.number for pair in PAIRS] == list(range(1, 18))
    for page, text in ((pages[language], html[language]) for language in LANGUAGES):
        assert {f"pair{n}" for n in range(1, 18)} <= set(page.ids)
        assert set(FIGURES) | set(TABLES) <= set(page.ids)
        assert text.count('class="pending"') == 15
        for pair in PAIRS:
            assert f">{pair.command}</code>" in text


def test_without_runs_everything_is_a_placeholder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    report.build(tmp_path / "runs", tmp_path / "report")
    for name in ("book.html", "book.zh.html"):
        text = (tmp_path / "report" / name).read_text(encoding="utf-8")
        assert text.count('class="pending"') == 17
        assert "<svg" not in text
        assert text.count("tightgrad lab image") >= 2


def test_ids_are_unique(pages: dict[str, Page]) -> None:
    for page in pages.values():
        assert len(page.ids) == len(set(page.ids))


def test_every_figure_names_its_files_and_its_command(pages: dict[str, Page]) -> None:
    for page in pages.values():
        assert tuple(page.figures) == FIGURES
        for slug, words in page.figures.items():
            text = " ".join(words)
            assert "tightgrad lab image" in text, slug
            assert ("runs/image/flow.json" if slug == "figure15" else "runs/image/*/seed*/summary.json") in text
        assert len(page.svg_labels) == 2 * len(FIGURES)
        assert all(label and len(label) > 60 for label in page.svg_labels)


def test_nothing_is_fetched_and_only_references_lead_outside(html: dict[str, str], pages: dict[str, Page]) -> None:
    for language in LANGUAGES:
        outside = [(tag, url, attrs) for tag, url, attrs in pages[language].links if url.startswith("http")]
        assert outside
        assert all(tag == "a" and attrs.get("rel") == "noreferrer" for tag, _, attrs in outside)
        assert "@import" not in html[language]
        assert not re.search(r"url\([\"']?(https?:)?//", html[language])


def test_every_local_link_exists(out: Path, pages: dict[str, Page]) -> None:
    for page in pages.values():
        for _, url, _ in page.links:
            if url.startswith("#"):
                assert url[1:] in page.ids, url
            elif not url.startswith(("http", "data:")):
                assert (out / url).is_file(), url
    assert (out / "assets" / "NotoSansSC-subset.otf").is_file()


@pytest.mark.parametrize("language", LANGUAGES)
def test_csv_values_are_those_of_the_files(out: Path, language: str) -> None:
    for slug in ("table13", "table15"):
        rows = read_csv(out / "tables" / f"{slug}.{language}.csv")
        assert len(rows) == 8
        for row, combination in zip(rows, COMBINATIONS, strict=True):
            cells = list(row.values())
            expected = summary(combination, 0)
            assert cells[0] == combination
            keys = ["value", "wire_bytes", "peak_memory_bytes", "step_seconds"]
            keys += ["compression_factor", "skipped_steps"] if slug == "table13" else ["seconds"]
            for key in keys:
                assert float(expected[key]) in [float(cell) for cell in cells[1:] if re.fullmatch(r"[-\d.e]+", cell)], (
                    key
                )


def test_csv_has_the_spread_over_seeds(tmp_path: Path) -> None:
    page = built(write_runs(tmp_path / "runs", seeds=3), tmp_path / "report")[0]
    row = read_csv(tmp_path / "report" / "tables" / "table13.en.csv")[0]
    values = [summary("none", seed)["value"] for seed in range(3)]
    mean = sum(values) / 3
    assert float(row["Test accuracy"]) == pytest.approx(mean, rel=1e-12)
    deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
    assert float(row["Test accuracy sd"]) == pytest.approx(deviation, rel=1e-9)
    assert "sample standard deviation over 3 seeds" in page.read_text(encoding="utf-8")


def test_the_page_names_what_fell_short(html: dict[str, str]) -> None:
    assert "more than the noise: accumulate + compress." in html["en"]
    assert "差距超过噪声的组合：累积 + 压缩。" in html["zh"]
    assert html["en"].count('class="verdict short"') == 1


def test_flow_draws_what_is_there(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "none", 0)
    bare = flow() | {"stages": [{"id": stage["id"]} for stage in flow()["stages"]] + [{"id": "something new"}]}
    (tmp_path / "runs" / "image" / "flow.json").write_text(json.dumps(bare), encoding="utf-8")
    drawn(tmp_path / "runs", tmp_path / "report", "zh")
    assert "something new" in (tmp_path / "report" / "figures" / "figure15.zh.svg").read_text(encoding="utf-8")


def test_part_of_the_factorial_is_shown_without_its_effects(tmp_path: Path) -> None:
    for combination in ("none", "compress"):
        write_run(tmp_path / "runs", combination, 0)
    page = drawn(tmp_path / "runs", tmp_path / "report", "en").read_text(encoding="utf-8")
    assert 'id="table13"' in page
    assert 'id="table13b"' not in page
    assert 'id="figure15"' not in page


def test_an_unfinished_run_is_left_out_and_named(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs")
    (write_run(tmp_path / "runs", "clip", 1) / "summary.json").unlink()
    page = built(tmp_path / "runs", tmp_path / "report")[0].read_text(encoding="utf-8")
    assert "Unfinished, not used: image/clip/seed1." in page


def test_no_bytes_on_the_wire_is_drawn_too(tmp_path: Path) -> None:
    for combination in COMBINATIONS:
        path = write_run(tmp_path / "runs", combination, 0) / "summary.json"
        path.write_text(json.dumps(summary(combination, 0) | {"wire_bytes": 0, "compression_factor": None}))
    assert drawn(tmp_path / "runs", tmp_path / "report", "en").exists()
    assert (tmp_path / "report" / "figures" / "figure13.en.svg").stat().st_size > 0


def test_imports_neither_torch_nor_the_library() -> None:
    code = (
        "import sys, tightgrad_lab.report, tightgrad_lab.report.build as _;"
        "heavy = {'torch', 'tightgrad', 'tightgrad_lab.cases', 'tightgrad_lab.experiments', 'tightgrad_lab.bench'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    source = Path(report.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(source)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


PARTS = ("summary", "references", "faq", "glossary", "environment")
NAMES = ("index", *(f"chapter{number}" for number in range(1, 9)), *PARTS, "book")


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_is_a_page_for_each_chapter_and_one_with_everything(out: Path, language: str) -> None:
    ending = ".html" if language == "en" else ".zh.html"
    assert {path.name for path in out.glob(f"*{ending}")} >= {f"{name}{ending}" for name in NAMES}
    pages = {name: Page((out / f"{name}{ending}").read_text(encoding="utf-8")) for name in NAMES}
    kept = [name for name in NAMES if name not in ("index", "book")]
    for name in kept:
        assert name in pages[name].ids
        assert not any(other in pages[name].ids for other in kept if other != name)
    common = {"content", "contents"}
    ids = [one for name in kept for one in pages[name].ids if one not in common]
    assert len(ids) == len(set(ids))
    assert set(ids) <= set(pages["book"].ids)


@pytest.mark.parametrize("language", LANGUAGES)
def test_links_between_pages_lead_to_what_is_there(out: Path, language: str) -> None:
    ending = ".html" if language == "en" else ".zh.html"
    ids = {f"{name}{ending}": Page((out / f"{name}{ending}").read_text(encoding="utf-8")).ids for name in NAMES}
    across = 0
    for name in ids:
        for _, url, _ in Page((out / name).read_text(encoding="utf-8")).links:
            file, _, anchor = url.partition("#")
            if url.startswith(("http", "data:")):
                continue
            if file == f"slides.{language}.html":  # `tightgrad report` and `tightgrad lab` build it beside
                continue
            assert (out / (file or name)).is_file(), url
            if anchor:
                assert anchor in ids[file or name], f"{name}: {url}"
                across += bool(file)
    assert across > 200


def test_pages_follow_each_other(out: Path) -> None:
    place, seen = "index.html", []
    text = (out / "chapter1.html").read_text(encoding="utf-8")
    assert f'href="{place}" rel="prev"' in text
    place = "chapter1.html"
    while place:
        seen.append(place.removesuffix(".html"))
        found = re.search(r'href="([^"]+)" rel="next"', (out / place).read_text(encoding="utf-8"))
        place = found[1] if found else ""
    assert seen == [name for name in NAMES if name not in ("index", "book")]


def test_the_language_switch_of_a_chapter_leads_to_the_same_chapter(out: Path) -> None:
    assert 'href="chapter3.zh.html"' in (out / "chapter3.html").read_text(encoding="utf-8")
    assert 'href="chapter3.html"' in (out / "chapter3.zh.html").read_text(encoding="utf-8")
