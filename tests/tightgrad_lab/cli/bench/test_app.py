"""`tightgrad bench`: what its verbs print."""

import json

import pytest
import torch

from tightgrad_lab.cli.app import run


def test_codecs_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "codecs", "--size", "4096", "--repeats", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["environment"]["torch"]
    keys = {"codec", "peer", "nbytes", "encode_ratio_to_copy", "decode_ratio_to_copy"}
    assert all(keys | {"compression_factor", "relative_error"} <= row.keys() for row in printed["rows"])
    assert {row["peer"] for row in printed["rows"]} == {True, False}


@pytest.mark.parametrize(("asked", "measured"), [((), {1, 3}), ((2,), {2}), ((2, 1), {1, 2})])
def test_clip_is_measured_in_one_thread_and_in_as_many_as_torch_takes(
    asked: tuple[int, ...], measured: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        arguments = ["bench", "clip", "--size", "20000", "--tensors", "10", "--repeats", "1", "--json"]
        assert run([*arguments, *(word for number in asked for word in ("--threads", str(number)))]) == 0
    finally:
        torch.set_num_threads(before)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["threads"] for row in rows} == measured
    assert len({len([row for row in rows if row["threads"] == number]) for number in measured}) == 1


@pytest.mark.parametrize("device", ["abacus", "cuda"])
def test_a_device_that_is_not_there_is_refused(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    if device == "cuda" and torch.cuda.is_available():
        assert run(["bench", "codecs", "--size", "4096", "--repeats", "1", "--device", "cuda", "--json"]) == 0
        return
    assert run(["bench", "codecs", "--device", device]) == 2
    assert f"--device {device}" in capsys.readouterr().err


def test_unknown_verb_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "nothing"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "'nothing'" in line
    assert all(verb in line for verb in ("accumulate", "clip", "codecs"))


def test_unknown_wrapper_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "accumulate", "--wrapper", "fsdp"]) == 2
    error = capsys.readouterr().err
    assert "'fsdp'" in error
    assert "'fsdp2 every'" in error
    assert run(["bench", "accumulate", "--fetch", "later"]) == 2
    assert "--fetch 'later' is not known; choose from 'window', 'batch'" in capsys.readouterr().err


def test_one_wrapper_alone_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        "tightgrad_lab.bench.accumulate.run",
        lambda wrappers, fetches, **_: {"rows": [*wrappers, *fetches], "missing": []},
    )
    assert run(["bench", "accumulate", "--wrapper", "ddp", "--wrapper", "plain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == ["ddp", "plain", "window", "batch"]
    assert run(["bench", "accumulate", "--wrapper", "ddp", "--fetch", "batch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == ["ddp", "batch"]
