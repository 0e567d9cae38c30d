"""A check is a function that is given a method, and fails unless the method keeps one promise."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from tightgrad.collectives import ThreadedCollective
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import ReduceContext
from tightgrad.core.rng import StepRng

Run = Callable[[], None]


class Checks:
    """Holds the checks of one kind of method, in the order in which they stand in the file."""

    def __init__(self) -> None:
        self._checks: list[tuple[Callable[..., None], Mapping[str, Any], Callable[[Any], bool]]] = []

    def add(
        self, variants: Mapping[str, Any] | None = None, applies: Callable[[Any], bool] = lambda subject: True
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Return a decorator that adds a check function and leaves it as it is.

        Args:
            variants: what the check is run on, by name, as its second argument; None runs it once, without one.
            applies: tells whether a method makes this promise at all.
        """

        def register(function: Callable[..., None]) -> Callable[..., None]:
            self._checks.append((function, variants or {}, applies))
            return function

        return register

    def runs(self, subject: object) -> Iterator[tuple[str, Run]]:
        """Yield a name and a function without arguments for each check and variant that applies."""
        for function, variants, applies in self._checks:
            if not applies(subject):
                continue
            name = function.__name__.removeprefix("check_")
            if not variants:
                yield name, partial(function, subject)
            for variant, value in variants.items():
                yield f"{name}-{variant}", partial(function, subject, value)


class OfLastSubject:
    """Keeps what was computed for one subject until the next one comes: its checks look at the same results."""

    def __init__(self) -> None:
        self._subject: object = None
        self._found: dict[object, Any] = {}

    def get(self, subject: object, key: object, compute: Callable[[], Any]) -> Any:
        """Return what `compute` gave for this subject and key; who takes it leaves it as it is."""
        if subject is not self._subject:
            self._subject, self._found = subject, {}
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]


def for_all(function: Callable[..., None], max_examples: int = 60, **drawn: SearchStrategy[Any]) -> None:
    """Run a function on examples that hypothesis draws, and raise for the smallest one that fails."""
    # How long an example takes says how busy the machine is, and nothing about the method.
    few = settings(max_examples=max_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    few(given(**drawn)(function))()


def context_of(collective: ThreadedCollective, step: int = 0) -> ReduceContext:
    """Return what a reducer is given at one step."""
    return ReduceContext(collective, StepRng(0, step, collective.rank), StageClock())
