"""Decisions are short pages of one shape, and the page of measurements names every stored run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
MEASUREMENTS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_is_one_short_page(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# {int(page.name[:4])}. ")
    assert [line for line in lines if line.startswith("## ")] == ["## Context", "## Decision", "## Consequence"]
    assert len(lines) < 40


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_sections_that_a_decision_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for section in re.findall(r'`benchmarks/README\.md`, "([^"]+)"', text):
        assert f"\n## {section}\n" in MEASUREMENTS


def test_every_kind_of_stored_run_is_named() -> None:
    stored = {path.stem[len("2026-11-27-") :] for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    kinds = {re.sub(r"-[a-z]{1,2}$", "", name) for name in stored}
    assert {kind for kind in kinds if kind not in MEASUREMENTS} == set()
