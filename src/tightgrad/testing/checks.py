"""A check is a function that is given a method, and fails unless the method keeps one promise."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hypothesis import HealthCheck, settings

Run = Callable[[], None]

# How long an example takes says how busy the machine is, and nothing about the method.
few_examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
more_examples = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def always(subject: object) -> bool:
    """Return True: the check is for all methods of its kind."""
    return True


@dataclass(frozen=True)
class Check:
    """Holds a function that checks one promise, and says which methods make it.

    Args:
        function: raises an AssertionError unless the promise is kept. It is given the method and, where there are
            `variants`, one of them.
        variants: what it is run on, by name; empty runs it once.
        applies: whether a method promises this at all.
    """

    function: Callable[..., None]
    variants: Mapping[str, Any]
    applies: Callable[[Any], bool]

    @property
    def name(self) -> str:
        """Return the function's name without `check_`."""
        return self.function.__name__.removeprefix("check_")

    def runs(self, subject: object) -> Iterator[tuple[str, Run]]:
        """Yield a name and a function without arguments for each variant; nothing where the check does not apply."""
        if not self.applies(subject):
            return
        if not self.variants:
            yield self.name, partial(self.function, subject)
        for name, variant in self.variants.items():
            yield f"{self.name}-{name}", partial(self.function, subject, variant)


class Checks(list[Check]):
    """Holds the checks of one kind of method, in the order in which they stand in the file."""

    def add(
        self, variants: Mapping[str, Any] | None = None, applies: Callable[[Any], bool] = always
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Return a decorator that adds a check function and leaves it as it is."""

        def register(function: Callable[..., None]) -> Callable[..., None]:
            self.append(Check(function, variants or {}, applies))
            return function

        return register

    def runs(self, subject: object) -> Iterator[tuple[str, Run]]:
        """Yield a name and a function without arguments for each check and variant that applies."""
        for check in self:
            yield from check.runs(subject)

    def run(self, subject: object) -> None:
        """Run all that applies, and raise the first AssertionError."""
        for _, run in self.runs(subject):
            run()
