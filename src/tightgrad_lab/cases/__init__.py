"""Case studies by name. Each is a module with a `CASE`; a new one adds its name here."""

import importlib
from typing import TYPE_CHECKING

from tightgrad_lab.errors import ArgumentError

if TYPE_CHECKING:
    from tightgrad_lab.training.case import AnyCase

CASES = ("image",)


def check_case(name: str) -> str:
    """Return `name` if there is such a case.

    Raises:
        ArgumentError: there is none.
    """
    if name not in CASES:
        raise ArgumentError(f"no case study is named {name!r}; choose from: {', '.join(CASES)}.")
    return name


def load_case(name: str) -> "AnyCase":
    """Import the case study of that name."""
    case: AnyCase = importlib.import_module(f"tightgrad_lab.cases.{check_case(name)}").CASE
    return case
