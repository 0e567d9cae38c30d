"""`tightgrad bench`: what its verbs print."""

import json

import pytest

from tightgrad_lab.cli.app import run


def test_codecs_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "codecs", "--size", "4096", "--repeats", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["environment"]["torch"]
    keys = {"codec", "peer", "nbytes", "encode_ratio_to_copy", "decode_ratio_to_copy"}
    assert all(keys | {"compression_factor", "relative_error"} <= row.keys() for row in printed["rows"])
    assert {row["peer"] for row in printed["rows"]} == {True, False}


def test_unknown_verb_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "nothing"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "'nothing'" in line
    assert all(verb in line for verb in ("accumulate", "clip", "codecs"))
