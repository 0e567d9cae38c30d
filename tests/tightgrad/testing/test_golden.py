"""The files of frozen payloads: their names, and what is said where one is missing."""

from pathlib import Path

import pytest

from tightgrad.codecs import Cast, PerTensor, TopK
from tightgrad.testing.golden import WRITE, check_golden, golden_path


def many_rules(last: float) -> PerTensor:
    rules = [(f"layers.{index}.attention.weight", TopK(0.01 * (index + 1))) for index in range(9)]
    return PerTensor((*rules, ("head", TopK(last))), default=Cast())


def test_many_settings_fit_a_file_name_and_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WRITE, "1")
    paths = [golden_path(tmp_path, many_rules(last)) for last in (0.1, 0.2)]
    assert len({*paths}) == 2
    assert all(len(path.name) < 255 for path in paths)
    for _ in range(2):  # written, then read
        check_golden(many_rules(0.1), tmp_path)


def test_a_missing_file_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WRITE, raising=False)
    with pytest.raises(AssertionError, match=f"run pytest once with {WRITE}=1 .* --tightgrad-write-golden"):
        check_golden(Cast(), tmp_path)
