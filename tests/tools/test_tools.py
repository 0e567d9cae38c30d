"""The checks of `make check` that are ours find what they are for."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


links, prose = loaded("check_links"), loaded("check_prose")

GOOD = """# A page: `code`, two words

## Twice
## Twice

[site](b.md) [heading](#a-page-code-two-words) [second](#twice_1) [of b](b.md#own) [made](made.md#in-it) [far](https://x/y)
`[no](link.md)` and ![image](pic.svg)

```
[nor](this.md)
```
"""
BAD = {
    "[a](missing.md)": "does not exist",
    "![a](missing.svg)": "does not exist",
    '<img src="missing.png">': "does not exist",
    "[a]: missing.md": "does not exist",
    "[a](b.md#nowhere)": "has no such heading",
    "[a](#nowhere)": "has no such heading",
    "[a](../README.md)": "is not part of the site",
    "[a](made.md#out-of-it)": "has no such heading",
    "[two words](b%20c.md)": "does not exist",
    '[a](missing.md "title")': "does not exist",
}


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(GOOD)
    (tmp_path / "docs" / "b.md").write_text("# B\n\n## Other {#own}\n")
    (tmp_path / "docs" / "pic.svg").write_text("<svg/>")
    (tmp_path / "README.md").write_text("# Read `me`\n\n## Über uns\n[b](docs/b.md#own) [here](#über-uns)\n")
    return tmp_path


MADE = {"made.md": "# Made\n\n## In it\n\n[a](a.md#twice)\n"}


def test_links_that_lead_somewhere_pass(tree):
    assert links.broken(tree, MADE) == []


@pytest.mark.parametrize(("text", "said"), BAD.items())
def test_links_that_do_not_are_named(tree, text, said):
    (tree / "docs" / "a.md").write_text(f"# A\n\n{text}\n")
    (tree / "docs" / "b.md").write_text("# B\n")
    found = links.broken(tree, {"made.md": "# Made\n"})
    assert [line for line in found if line.startswith("docs/a.md: ") and line.endswith(said)], found


def test_a_page_that_the_site_makes_is_looked_at_too(tree):
    made = {"made.md": "# In it\n\n[a](nowhere.md)\n"}
    assert links.broken(tree, made) == ["docs/made.md: nowhere.md does not exist"]


SENTENCES = [
    "Exits with 1 if something is.",
    "`Plan()` is right together with all others.",
    "Made from the cards that the methods carry.",
    "Of one rank, in 10^9 bytes.",
    "Its part of this machine if not given.",
    "The run found two bugs of ours.",
    "What becomes right by it.",
    "It needs little memory for that.",
    "The checkpoint before is in force.",
    "It does so above all in deep networks.",
    "One bound shall fit them all.",
    "It takes 28 minutes in all.",
    "A word " * 46,
    "由实测的各行数据写成。",
    "使用束宽 4 的搜索，批次 512。",
    "会有百分之几的步子被裁剪？",
    "课程的七个 notebook 中英文各一套。",
    "DGC 加了动量校正。",
    "矩阵改用 Muon，四个离群批次。",
]


@pytest.mark.parametrize("sentence", SENTENCES)
def test_sentences_of_the_kind_are_found(sentence, tmp_path):
    (tmp_path / "README.md").write_text(f"# Title\n\n- First.\n- {sentence}\n")
    found = [line for path, text in prose.paragraphs(tmp_path) for line in prose.findings(path, text)]
    assert found
    assert all(line.startswith("README.md: ") for line in found)


@pytest.mark.parametrize(
    "text",
    [
        "An empty `Plan()` is bitwise identical to plain PyTorch.",
        "Exits with 1 if a problem is found.",
        "Each case runs in all eight combinations.",
        "```\nif something is.\n```",
        "`if not given`",
        "[a](if-not given)",
        "裁剪在深层网络中尤其重要。",
        "`examples/notebooks/zh` 里的笔记本，小批次 {base}，微批次 {size}。",
        "A quotation: it shall pass. <!-- prose: as it is -->",
    ],
)
def test_others_are_not(text, tmp_path):
    (tmp_path / "README.md").write_text(f"# Title\n\n{text}\n")
    assert [line for path, one in prose.paragraphs(tmp_path) for line in prose.findings(path, one)] == []


def test_the_texts_of_command_line_and_page_are_read():
    places = {path for path, _ in prose.paragraphs(ROOT)}
    assert {"README.md", "src/tightgrad_lab/report/texts/zh.json", "src/tightgrad_lab/cli/lab.py"} <= places
    assert any(place.startswith("docs/zh/") for place in places)
    assert any(place.startswith("src/tightgrad_lab/report/book/zh/") for place in places)
    assert "examples/notebooks/src/clipping.zh.md" in places
