"""Methods by id: ours, and those of packages that only have an entry point."""

import dataclasses
import subprocess
import sys
import textwrap

import pytest

import tightgrad as tg
from tightgrad.pipeline.registry import cards, collect, method, methods


def test_ids_are_unique_and_lead_to_their_class():
    assert len({card.id for card in cards()}) == len(cards()) == len(methods())
    for name, cls in methods().items():
        assert cls.card.id == name
        assert method(name) is cls


def test_an_unknown_id_names_the_known_ones():
    with pytest.raises(tg.ConfigError, match=r"no method has the id 'topp'; known: .*topk"):
        method("topp")


def test_a_taken_id_raises_and_says_by_whom():
    other = type("Other", (), {"card": tg.codecs.TopK.card})
    with pytest.raises(tg.ConfigError, match="method id 'topk' of theirs is taken by ours; choose another id"):
        collect([("ours", tg.codecs.TopK), ("theirs", other)])


def test_a_class_without_a_card_raises():
    with pytest.raises(tg.ConfigError, match="int from somewhere has no `card`"):
        collect([("somewhere", int)])


@pytest.mark.parametrize("field", ["id", "summary", "scope", "reference", "use_when", "avoid_when"])
def test_a_card_is_complete(field):
    with pytest.raises(tg.ConfigError, match=f"has an empty {field}"):
        dataclasses.replace(tg.codecs.TopK.card, **{field: ""})


def test_a_card_has_a_kind():
    with pytest.raises(tg.ConfigError, match=r"kind='colour'.*'codec'"):
        dataclasses.replace(tg.codecs.TopK.card, kind="colour")


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.id)
def test_cards_are_one_liners_that_fit_a_table(card):
    for text in (card.summary, card.use_when, card.avoid_when, card.reference):
        assert "\n" not in text
        assert len(text) <= 160
    assert card.reducer == "" or card.kind == "codec"
    if card.reducer:
        assert method(card.reducer).card.kind == "reducer"


PLUGIN = """
    from dataclasses import dataclass, replace
    import tightgrad as tg

    @dataclass(frozen=True)
    class Third(tg.codecs.Cast):
        card = replace(tg.codecs.Cast.card, id={name!r}, summary="from another package")
"""
USE = """
    import tightgrad as tg
    from tightgrad.pipeline.registry import method
    plan = tg.Plan.from_json('{"version": 1, "compress": {"codec": {"id": "third"}}}')
    assert type(plan.compress.codec) is method("third")
    assert tg.Plan.from_json(plan.to_json()) == plan
    print(plan.compress.codec.card.summary)
"""


def run_with_plugin(folder, name):
    (folder / "third.py").write_text(textwrap.dedent(PLUGIN.format(name=name)))
    info = folder / "third-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tightgrad.methods]\nthird = third:Third\n")
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n" + textwrap.dedent(USE)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_another_package_adds_a_method_with_an_entry_point(tmp_path):
    done = run_with_plugin(tmp_path, "third")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "from another package\n"


def test_another_package_cannot_replace_a_method(tmp_path):
    done = run_with_plugin(tmp_path, "cast")
    assert done.returncode != 0
    assert "method id 'cast' of third:Third (entry point third) is taken by tightgrad.codecs.cast" in done.stderr
