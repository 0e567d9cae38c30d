"""`tightgrad methods` lists exactly what the registry has."""

import json

import pytest

from tightgrad.plan.registry import cards
from tightgrad_lab.cli import app as cli

KEYS = {"id", "kind", "summary", "unbiased", "linear", "scope", "reference", "use_when", "avoid_when"}


def test_json_has_one_row_for_each_method(capsys):
    assert cli.run(["methods", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in shown["rows"]] == [card.id for card in cards()]
    assert all(row.keys() == KEYS for row in shown["rows"])
    assert {"python", "torch", "tightgrad", "platform", "cores", "time"} <= shown["environment"].keys()


def test_table_fits_80_columns_and_names_every_method(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run(["methods"]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert all(card.id in out for card in cards())


@pytest.mark.parametrize("card", cards(), ids=lambda card: card.id)
def test_one_method_is_explained(card, capsys):
    assert cli.run(["methods", card.id]) == 0
    out = capsys.readouterr().out
    for part in (card.id, card.summary, card.use_when, card.avoid_when, card.reference, "Examples:", ">>>"):
        assert part in out
    assert "<factory>" not in out


def test_an_unknown_one_is_answered_with_the_nearest(capsys):
    assert cli.run(["methods", "topkk"]) == 2
    assert "no method has the id 'topkk'; topk" in capsys.readouterr().err
