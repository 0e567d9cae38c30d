"""Both languages say the same things, and the shipped font can draw all of it."""

import json
import re
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont
from markupsafe import Markup

from tightgrad_lab.report import units
from tightgrad_lab.report.drawing import figures
from tightgrad_lab.report.texts import breakable, load
from tightgrad_lab.schema import NUMBERS, published_files

EN, ZH = load("en").entries, load("zh").entries
REFERENCES = json.loads(Path(units.__file__).with_name("references.json").read_text(encoding="utf-8"))


def test_same_keys_in_the_same_order() -> None:
    assert list(EN) == list(ZH)


def test_same_placeholders() -> None:
    for key in EN:
        assert set(re.findall(r"{(\w+)}", EN[key])) == set(re.findall(r"{(\w+)}", ZH[key])), key
        assert EN[key].strip(), key
        assert ZH[key].strip(), key


def test_every_setting_has_a_name() -> None:
    """A setting without a name would stand on the Chinese page as the key of its file."""
    for path in published_files():
        for name, value in json.loads(path.read_text(encoding="utf-8"))["settings"].items():
            assert f"set.{name}" in ZH or not isinstance(value, int | float | str), f"{path.name}: {name}"


def test_every_text_is_used() -> None:
    folder = Path(units.__file__).parent
    sources = [*folder.rglob("*.py"), *folder.rglob("*.j2")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    families = (
        "pair.",
        "chapter.",
        "stage.",
        "technique.",
        "compare.",
        "verdict.",
        "claim.",
        "env.",
        "set.",
        "metric.",
    )
    families += ("references.", "faq.", "combination.", "section.", "role.", "case.", "baseline.", "variant.", "box.")
    families += ("studies.", "full.", "published.")
    made = tuple(re.findall(r"([a-z_]+\.[a-z_]+\.[a-z_]+\.)\{", code))  # f"combinations.figure.remedy.{name}"
    unused = [key for key in EN if key not in code and not key.startswith((*families, *made))]
    assert unused == []


def test_the_font_has_every_character_of_every_text() -> None:
    drawn = set(TTFont(figures.FONT_FILE).getBestCmap())
    numbers = "".join(
        [units.factor_text(1.5), units.points_text(-0.01), units.seconds_text(1e-5), units.MISSING, "∞±·×"]
    )
    book = [path.read_text(encoding="utf-8") for path in Path(units.__file__).parent.glob("book/*/*.md")]
    for texts in (EN.values(), ZH.values(), book):
        used = {ord(char) for text in texts for char in text if char != "\n"} | {ord(char) for char in numbers}
        assert {chr(code) for code in used - drawn} == set()


def test_the_font_is_small_and_does_not_shadow_an_installed_one() -> None:
    font = TTFont(figures.FONT_FILE)
    assert font["name"].getDebugName(1) == figures.FONT
    assert figures.FONT_FILE.stat().st_size < 1.2 * 2**20
    assert "SIL OPEN FONT LICENSE Version 1.1" in figures.FONT_FILE.with_name("OFL.txt").read_text(encoding="utf-8")


def test_references_lead_to_papers() -> None:
    assert len(REFERENCES["course"]) == 12
    everything = [*REFERENCES["course"], *REFERENCES["methods"], *REFERENCES["reading"]]
    allowed = (
        r"https://(arxiv\.org/abs/\d{4}\.\d{5}|arxiv\.org/abs/\d{4}\.\d{4}|doi\.org/10\..+|www\.deeplearningbook\.org/)"
    )
    assert all(re.fullmatch(allowed, item["url"]) for item in everything)
    assert len({item["url"] for item in everything}) == len(everything)
    assert all(name in NUMBERS for item in everything for name in item["pairs"])
    assert all(item["pairs"] for item in REFERENCES["course"]), "each paper of the course is used by an experiment"
    assert len({item["role"] for item in REFERENCES["course"]}) == 12
    assert all(f"role.{item['role']}" in EN for item in REFERENCES["course"])


def test_colors_are_distinct_so_that_the_page_can_tell_them_apart() -> None:
    assert len(set(figures.COLORS.values())) == len(figures.COLORS)
    style = Path(units.__file__).parent.joinpath("templates", "style.css").read_text(encoding="utf-8")
    for name in figures.COLORS:
        assert style.count(f"--fig-{name}:") >= 2, name


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.bytes_text(512), "512 B"),
        (units.bytes_text(493_824), "482 KiB"),
        (units.bytes_text(1_800_000), "1.72 MiB"),
        (units.bytes_text(5 * 2**30), "5.00 GiB"),
        (units.bytes_tick(20 * 2**20), "20 MiB"),
        (units.seconds_text(0.0003), "300 µs"),
        (units.seconds_text(0.042), "42.0 ms"),
        (units.seconds_text(31), "31.0 s"),
        (units.seconds_text(600), "10.0 min"),
        (units.percent_text(0.886), "88.6 %"),
        (units.points_text(-0.012), "−1.2 pp"),
        (units.points_text(-0.0001), "0.0 pp"),
        (units.factor_text(98.24), "98.2×"),
        (units.factor_text(0.00263), "0.0026×"),
        (units.factor_text(float("inf")), "–"),
        (units.short_text(1.23e-7), "1.2e−7"),
        (units.short_text(0.0263), "0.026"),
        (units.factor_text(2.6e-5), "2.6e−5×"),
        (units.number_text(0.5849), "0.585"),
        (units.number_text(0), "0"),
        (units.number_text(-1.5), "−1.50"),
        (units.number_text(float("nan")), "NaN"),
    ],
)
def test_units(shown: str, expected: str) -> None:
    assert shown.replace(units.NBSP, " ") == expected


def test_code_in_a_cell_breaks_at_dots_underscores_and_brackets() -> None:
    assert breakable(Markup("<code>a.b_c(d)</code> e.f")) == "<code>a.<wbr>b_<wbr>c(<wbr>d)</code> e.f"
    assert breakable("<code>a.b</code>") == "<code>a.b</code>"  # plain text stays: it will be escaped
