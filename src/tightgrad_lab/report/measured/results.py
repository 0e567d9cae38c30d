"""What the experiments found: runs/pairNN/result.json, checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from markupsafe import Markup

from tightgrad_lab import schema
from tightgrad_lab.report import units
from tightgrad_lab.report.errors import ReportError
from tightgrad_lab.report.model import Source
from tightgrad_lab.report.texts import Texts

PUBLISHED = "published"
"""The folder under runs/ into which the lab copies the results that come with the package, laid out as runs/ is."""
_KEYS: dict[str, type] = {
    "command": str,
    "settings": dict,
    "environment": dict,
    "figure": dict,
    "table": list,
}


FigureT = TypeVar("FigureT", bound=Mapping[str, Any])
RowT = TypeVar("RowT", bound=Mapping[str, Any])


@dataclass(frozen=True, slots=True)
class ResultOf(Generic[FigureT, RowT]):
    """One experiment's result: `ResultOf[LinkSpeedsFigure, LinkSpeedsRow]` with types of `tightgrad_lab.schema`.

    Attributes:
        path: the file.
        published: None if this machine measured it; otherwise what it lacked, so that the published result is shown.
    """

    path: Path
    command: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    seconds: float
    published: str | None
    figure: FigureT
    table: tuple[RowT, ...]

    @property
    def source(self) -> Source:
        """The file and the command, as a figure or table names them."""
        root = self.path.parents[1]
        below = f"{self.path.parent.name}/{self.path.name}"
        shown = f"{root.parent.name}/{root.name}/{below}" if root.name == PUBLISHED else f"{root.name}/{below}"
        return Source((shown,), 1, self.command)

    @property
    def is_full(self) -> bool:
        """Whether these are the full settings."""
        return self.command.endswith(" --full")


Result = ResultOf[Any, Any]
"""A result whose keys are not known to the type checker."""


def read_result(root: Path, name: str) -> Result | None:
    """Return the result of an experiment, or None if it has not been run.

    Raises:
        ReportError: the file is damaged.
    """
    path = schema.result_path(root, name)
    try:
        data = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _fail(path, f"cannot be read ({error})", name) from error
    if not isinstance(data, dict) or data.get("schema") != schema.SCHEMA or data.get("pair") != schema.number(name):
        raise _fail(path, f"not a result of {name} of schema {schema.SCHEMA}", name)
    for key, kind in _KEYS.items():
        if not isinstance(data.get(key), kind):
            raise _fail(path, f'"{key}" is not a {kind.__name__}', name)
    if not all(isinstance(row, dict) for row in data["table"]):
        raise _fail(path, '"table" is not a list of objects', name)
    published = data.get("published")
    return ResultOf(
        path,
        data["command"],
        data["settings"],
        data["environment"],
        float(data.get("seconds", 0.0)),
        str(published["reason"]) if published else None,
        data["figure"],
        tuple(data["table"]),
    )


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """A book reads the same file a hundred times; nobody changes what a `Result` holds."""
    return json.loads(text)


def read_best(root: Path, name: str) -> Result | None:
    """The result that says most: the published one of the full settings, unless this machine ran these itself."""
    own, published = read_result(root, name), read_result(root / PUBLISHED, name)
    return own if published is None or (own is not None and own.is_full) else published


def notes(result: Result, texts: Texts) -> list[str | Markup]:
    """What stands under a table: the settings, and whether another machine measured it."""
    shown = [
        Markup("{}{}{}").format(texts.get(f"set.{name}", name.replace("_", " ")), units.NBSP, _setting(value))
        for name, value in result.settings.items()
        if isinstance(value, int | float | str)
    ]
    found: list[str | Markup] = []
    if shown:
        colon = "：" if texts.language == "zh" else ": "
        found.append(Markup(texts("settings.same") + colon) + Markup(" · ").join(shown))
    if result.published is not None:
        found.append(texts.html("result.published", reason=result.published, date=str(result.environment["time"])[:10]))
    return found


def _setting(value: float | str) -> str:
    return units.count_text(value) if type(value) is int else str(value)


def _fail(path: Path, what: str, name: str) -> ReportError:
    return ReportError(f"{path}: {what}. Delete it and run `{schema.command(name)}` again.")
