"""The experiments by the number of their pair. The pairs 13 and 15 to 17 are drawn from the case studies' runs."""

from importlib import import_module

from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.experiments.experiment import Experiment

CASES_OF_PAIR = {13: ("image",), 15: ("image",), 16: ("text", "translation"), 17: ("series",)}
MODULES: dict[int, str] = {
    1: "pair01",
    2: "pair02",
    3: "pair03",
    4: "pair04",
    5: "pair05",
    6: "pair06",
    7: "pair07",
    8: "pair08",
    9: "pair09",
    10: "pair10",
    11: "pair11",
    12: "pair12",
    14: "pair14",
}


def numbers() -> tuple[int, ...]:
    """The pairs that have an experiment of their own."""
    return tuple(sorted(MODULES))


def experiment(number: int) -> Experiment[object]:
    """The experiment of a pair.

    Raises:
        ArgumentError: it has none.
    """
    if number not in MODULES:
        raise ArgumentError(f"there is no experiment {number}; choose from {', '.join(map(str, numbers()))}.")
    module = import_module(f"tightgrad_lab.experiments.{MODULES[number]}")
    found: Experiment[object] = module.EXPERIMENT
    return found
