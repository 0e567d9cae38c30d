"""Numbers of the page lead to a file and a command: they change with the files named beside them, and with no other."""

import functools
import importlib
import itertools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from browser.fixture_runs import write_runs
from support.drawing import without_figures
from support.page_numbers import Key, PageNumbers, Shown
from tightgrad_lab.cli.app import app
from tightgrad_lab.experiments.handout import write_handout
from tightgrad_lab.schema import published_files

SENTENCES = ("claim-", "faq-", "measured")
COUNTS = ({"diverged": 2, "diverged_with": 1}, {"spikes": 1})  # small, and yet measured: what each of a group gains
build_module = importlib.import_module("tightgrad_lab.report.build")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], dict[Key, Shown]]]:
    """The numbers of the English page of a folder; figures are left out, which takes most of the time."""
    out = tmp_path_factory.mktemp("out")

    def numbers(runs: Path) -> dict[Key, Shown]:
        build_module.build(runs, out)
        return PageNumbers((out / "book.html").read_text(encoding="utf-8")).found

    with without_figures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "LANGUAGES", ("en",))
        yield numbers


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A factorial and every result that comes with the package, as if measured here."""
    root = write_runs(tmp_path_factory.mktemp("lab") / "runs", seeds=3)
    write_handout(root)
    for source in published_files():
        (root / source.stem).mkdir()
        shutil.copyfile(source, root / source.stem / "result.json")
    return root


@pytest.fixture(scope="module")
def numbers(runs: Path, pages: Callable[[Path], dict[Key, Shown]]) -> dict[Key, Shown]:
    """What stands on the page, before any file is changed."""
    return pages(runs)


def _changed(value: Any, chance: random.Random) -> Any:
    """Every number a little different, but not what rows are told apart by."""
    if isinstance(value, dict):
        more = {name: add for group in COUNTS if value.keys() >= group.keys() for name, add in group.items()}
        return {
            name: one if _is_kept(name) else chance.random() < 0.5 if name == "learned" else _changed(one, chance)
            for name, one in value.items()
        } | {name: value[name] + add for name, add in more.items() if isinstance(value[name], int)}
    if isinstance(value, list):
        return [_changed(one, chance) for one in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return value * chance.uniform(0.9, 0.999) if isinstance(value, float) else value + (value > 20)


def _is_kept(name: str) -> bool:
    return name in ("schema", "pair", "seed", "seeds", "batch", "base_batch", "epoch", "step", "environment")


def _copy(runs: Path, to: Path, named: frozenset[str], *, others: bool, chance: random.Random) -> Path:
    """The same runs with the named files changed, or with all others changed."""
    shutil.copytree(runs, to)
    for path in sorted(to.rglob("*.json*")):
        chosen = (path.relative_to(to.parent).as_posix() in named) != others
        if not chosen or path.name in ("methods.json", "config.json"):
            continue
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("\n".join(json.dumps(_changed(json.loads(line), chance)) for line in lines))
    return to


def _named(shown: Shown, runs: Path) -> frozenset[str]:
    found = {path for pattern in shown.files for path in runs.parent.glob(pattern)}
    return frozenset(path.relative_to(runs.parent).as_posix() for path in found)


def untraced(
    picked: list[Key], numbers: dict[Key, Shown], runs: Path, pages: Callable[[Path], dict[Key, Shown]], scratch: Path
) -> list[str]:
    """What is wrong with each of the picked numbers."""
    wrong = []
    place = itertools.count()

    @functools.cache
    def changed(named: frozenset[str], turn: int, others: bool = False) -> dict[Key, Shown]:
        """The page after another change at each turn."""
        to = scratch / str(next(place)) / "runs"
        return pages(_copy(runs, to, named, others=others, chance=random.Random(turn)))

    for key in picked:
        shown = numbers[key]
        named = _named(shown, runs)
        if not named or not shown.commands:
            wrong.append(f"{key}: names no file or no command")
            continue
        nothing = Shown("", (), ())
        if all(changed(named, turn).get(key, nothing).value == shown.value for turn in range(2)):
            wrong.append(f"{key} = {shown.value}: does not depend on {', '.join(shown.files)}")
        if changed(named, 2, others=True).get(key, nothing).value != shown.value:
            wrong.append(f"{key} = {shown.value}: depends on more than {', '.join(shown.files)}")
        wrong += [f"{key}: no such command: {command}" for command in shown.commands if not _runs(command)]
    return wrong


def _runs(command: str) -> bool:
    """Whether the command line takes it."""
    program, verb, *arguments = command.split()
    verbs: Any = typer.main.get_command(app)
    try:
        verbs.commands[verb].make_context(verb, arguments)
    except Exception:
        return False
    return program == "tightgrad"


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_numbers_at_random(
    count: int, numbers: dict[Key, Shown], runs: Path, pages: Callable[[Path], dict[Key, Shown]], tmp_path: Path
) -> None:
    assert len(numbers) > 150
    seed = time.time_ns()
    chance = random.Random(seed)
    sentences = [key for key in numbers if key[0].startswith(SENTENCES)]
    assert sum(key[0] == "measured" for key in numbers) > 40
    cells = [key for key in numbers if key not in sentences]
    picked = chance.sample(_measured(sentences, numbers), count // 2)
    picked += chance.sample(_measured(cells, numbers), count - count // 2)
    assert untraced(picked, numbers, runs, pages, tmp_path) == [], f"seed {seed}"


def _measured(keys: list[Key], numbers: dict[Key, Shown]) -> list[Key]:
    """Those that are not counts or sizes that tell rows apart, nor in a column that is the same in every row."""
    columns: dict[tuple[str, str], set[str]] = {}
    for (place, _, column), shown in numbers.items():
        columns.setdefault((place, column), set()).add(shown.value)
    whole = {key for key in keys if float(numbers[key].value) in range(2049)}
    same = {key for key in keys if len(columns[key[0], key[2]]) == 1 and not key[0].startswith(SENTENCES)}
    return [key for key in keys if key not in whole | same]


def test_a_number_typed_by_hand_is_found_out(
    numbers: dict[Key, Shown], runs: Path, pages: Callable[[Path], dict[Key, Shown]], tmp_path: Path
) -> None:
    """The check itself can fail."""
    key = next(key for key in numbers if key[0] == "claim-bytes")
    typed = numbers | {key: Shown("123.4", numbers[key].files, numbers[key].commands)}
    assert untraced([key], typed, runs, pages, tmp_path) != []
    elsewhere = {**numbers, key: Shown(numbers[key].value, ("runs/large_batches/result.json",), numbers[key].commands)}
    assert untraced([key], elsewhere, runs, pages, tmp_path / "more") != []
