"""Chinese text has a space beside Latin letters and digits, also where a value is filled in."""

import re
from pathlib import Path

import pytest

import tightgrad_lab
from tightgrad_lab.report.texts import load, spaced

HERE = Path(tightgrad_lab.__file__).parent
NAMES = ("*.zh.json", "*.zh.md", "zh.json", "zh.md", "zh/*.md")
WRITTEN = sorted({path for name in NAMES for path in HERE.rglob(name)})
TOUCHING = re.compile(r"[\u4e00-\u9fff][A-Za-z0-9$`]|[A-Za-z0-9%$`][\u4e00-\u9fff]")
OUTLINES = re.compile(r"^- .*(小显存GPU上|如TensorFlow和|如8-bit、16-bit量化).*$|在RNN训练中", flags=re.MULTILINE)
"""What stands so in the outline of the course, whose words are kept."""


def plain(text: str) -> str:
    """The text without code, formulas and links, whose marks stand for a letter beside Chinese, and without breaks."""
    text = OUTLINES.sub("", text.replace("\\n", "\n"))
    text = re.sub(r"```.*?```|\$\$.*?\$\$|\]\([^)]*\)|^\|.*::.*$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]+`", "`", re.sub(r"\$[^$\n]+\$", "$", text))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(HERE)))
def test_written_text_has_spaces(path: Path) -> None:
    text = plain(path.read_text(encoding="utf-8"))
    assert [text[max(0, m.start() - 8) : m.end() + 8] for m in TOUCHING.finditer(text)] == []


def test_the_whole_of_it_is_looked_at() -> None:
    assert len(WRITTEN) > 50
    assert TOUCHING.findall(plain("测试MSE，取 8位，共 `x`个，乘以$c$；范数 $g$ 与 `y` 都好")) == [
        "试M",
        "8位",
        "`个",
        "以$",
    ]


@pytest.mark.parametrize("name", ["metric", "names", "label", "kind", "title"])
def test_a_value_that_is_filled_in_has_spaces(name: str) -> None:
    texts = load("zh")
    keys = [key for key, text in texts.entries.items() if set(re.findall(r"\{(\w+)", text)) == {name}]
    for key in keys:
        for said in (texts(key, **{name: "MSE"}), str(texts.html(key, **{name: "MSE"}))):
            assert TOUCHING.findall(OUTLINES.sub("", said)) == [], key
    assert keys


@pytest.mark.parametrize(
    ("text", "parts", "right"),
    [
        ("测试MSE", ("测试{metric}",), "测试 MSE"),
        ("测试<b>MSE</b>最小", (), "测试 <b>MSE</b> 最小"),
        ("最大 0.1 %完成", (), "最大 0.1 % 完成"),
        ("测试A型", (), "测试 A 型"),
        ("表 2：在RNN训练中", ("表 {n}：{title}", "在RNN训练中"), "表 2：在RNN训练中"),
        ("损失 2.3，取 8 位", (), "损失 2.3，取 8 位"),
    ],
)
def test_only_what_was_filled_in_is_moved(text: str, parts: tuple[str, ...], right: str) -> None:
    assert spaced(text, *parts) == right
