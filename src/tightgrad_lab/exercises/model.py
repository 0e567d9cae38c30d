"""What a grader is: the function it asks for, cases, the right answer, and slips that lead to known wrong ones."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from tightgrad_lab.exercises.words import Words

if TYPE_CHECKING:
    import torch

Case = tuple[Any, ...]
"""The arguments of one call."""


class Draw:
    """Draws the numbers of the cases; the same seed draws the same ones.

    Args:
        seed: printed with the verdict, so that a failure can be repeated.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._generator: torch.Generator | None = None

    def integer(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return self._random.randint(low, high)

    def real(self, low: float, high: float, digits: int = 3) -> float:
        """A number between two bounds, with a few digits, as one writes it on paper."""
        return round(self._random.uniform(low, high), digits)

    def signed(self, low: float, high: float, digits: int = 3) -> float:
        """A number whose size lies between two bounds, positive or negative."""
        return float(self.real(low, high, digits) * self.pick((-1, 1)))

    def pick(self, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        return self._random.choice(choices)

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        """The items in another order."""
        found = list(items)
        self._random.shuffle(found)
        return found

    @property
    def generator(self) -> "torch.Generator":
        """A generator of torch with the same seed."""
        import torch

        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        return self._generator

    def normal(self, *shape: int, scale: float = 1.0) -> "torch.Tensor":
        """Normal numbers in float64."""
        import torch

        return torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale


@dataclass(frozen=True)
class Slip:
    """A mistake that people make: the keywords that make `right` compute what comes out, and what to tell them."""

    words: Words
    flags: Mapping[str, Any]


def slip(en: str, zh: str, **flags: Any) -> Slip:
    """Return a slip; `flags` are keywords of the exam's `right`."""
    return Slip(Words(en, zh), flags)


def call(function: Callable[..., Any], case: Case) -> Any:
    """Ask the function as it stands."""
    return function(*case)


def no_more(function: Callable[..., Any], draw: Draw) -> Words | None:
    """Ask nothing beyond the cases."""
    return None


@dataclass(frozen=True)
class Exam:
    """Grades one exercise.

    Args:
        function: name that the student's file defines.
        cases: draws the arguments of the calls.
        right: computes the answer in float64 from the arguments; with a slip's flags, what that slip leads to.
        slips: known mistakes, the likeliest first.
        ask: calls the student's function on a copy of a case, and returns what is compared with `right`.
        tolerance: relative to the largest number of an answer.
        changes: places of the arguments that the function is meant to change.
        without: names that may not be used; the library has an answer to most exercises.
        more: checks what no number shows, once all cases are right; returns what is wrong.
        together: how many slips at once are looked for.
        seconds: of processor time that grading may take.
    """

    function: str
    cases: Callable[[Draw], list[Case]]
    right: Callable[..., Any]
    slips: tuple[Slip, ...] = ()
    ask: Callable[[Callable[..., Any], Case], Any] = call
    tolerance: float = 1e-6
    changes: tuple[int, ...] = ()
    without: tuple[str, ...] = ("tightgrad",)
    more: Callable[[Callable[..., Any], Draw], Words | None] = no_more
    together: int = 3
    seconds: float = 20.0


def copied(case: Case) -> Case:
    """Return arguments that may be changed without changing these."""
    clones: dict[int, Any] = {}
    _clone(case, clones)
    return copy.deepcopy(case, clones)


def _clone(value: Any, clones: dict[int, Any]) -> None:
    """Clone the tensors of a case, for each of which deepcopy takes fifty times as long."""
    if isinstance(value, list | tuple):
        for one in value:
            _clone(one, clones)
    elif is_dataclass(value):
        _clone([*vars(value).values()], clones)
    elif getattr(value, "requires_grad", None) is False:
        clones[id(value)] = value.clone()
