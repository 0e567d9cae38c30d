"""Windows of a script's optimizers, and what share of each micro-batch's gradient every step took."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tightgrad_lab.audit.script.records import Backward, Clip, Ledger, Samples, Step

Vector = NDArray[np.float64]
EQUAL = 1e-5
BEFORE = 12
"""Backwards before a window that may still be in its gradient."""


@dataclass
class Window:
    """One step of one optimizer, on all ranks.

    Args:
        number: of the step, from 0.
        steps: rank -> its step.
        backwards: rank -> those between the step before and this one, that reach its parameters.
        earlier: rank -> those shortly before.
        clips: rank -> those of its parameters, after the step before.
    """

    number: int
    steps: list[Step]
    backwards: list[list[Backward]]
    earlier: list[list[Backward]]
    clips: list[list[Clip]] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        return len(self.steps)

    @property
    def length(self) -> int:
        """Micro-batches on a rank; of rank 0, should they differ."""
        return len(self.backwards[0])

    @property
    def tolerance(self) -> float:
        """Relative difference that rounding may make."""
        return max(1e-3, 8 * max(step.eps for step in self.steps))

    @property
    def in_parts(self) -> bool:
        """Whether each backward is of the whole window's loss and adds a part of its gradient: the losses are equal and
        the gradients are not. Contrastive losses with cached representations are computed so.
        """
        for own in self.backwards:
            losses = [one.loss for one in own]
            if len(own) < 2 or not max(losses) - min(losses) <= EQUAL * abs(losses[0]):
                return False
            first = own[0].gradient
            if all(np.array_equal(one.gradient[n], first[n]) for one in own for n in first if n in one.gradient):
                return False  # the same batch again and again
        return True

    def parameters(self) -> list[int]:
        """Numbers of the parameters that this step is over, in order."""
        return sorted(self.steps[0].parameters)

    def vector(self, samples: Samples, sizes: dict[int, int]) -> Vector:
        """Samples of all parameters as one vector; zeros where there are none."""
        parts = [samples.get(number, np.zeros(sizes[number])) for number in self.parameters() if number in sizes]
        return np.concatenate(parts) if parts else np.zeros(0)


def windows_of(ledgers: Sequence[Ledger], optimizer: int) -> list[Window]:
    """All windows of one optimizer that every rank has, without those that a GradScaler left out."""
    by_rank = [[step for step in ledger.steps if step.optimizer == optimizer] for ledger in ledgers]
    found = []
    starts = [0] * len(ledgers)
    places = [{id(step): place for place, step in enumerate(ledger.steps)} for ledger in ledgers]
    for number, steps in enumerate(zip(*by_rank, strict=False)):
        window = Window(number, list(steps), [], [])
        for rank, (ledger, step) in enumerate(zip(ledgers, steps, strict=True)):
            held = set(step.parameters)
            own = [one for one in ledger.backwards[starts[rank] : step.backwards] if held & one.gradient.keys()]
            early = ledger.backwards[max(0, starts[rank] - BEFORE) : starts[rank]]
            window.backwards.append(own)
            window.earlier.append([one for one in early if held & one.gradient.keys()])
            clips = [one for one in ledger.clips if starts[rank] < one.backwards <= step.backwards]
            before = places[rank][id(step)]
            window.clips.append([one for one in clips if one.steps <= before and held & set(one.parameters)])
            starts[rank] = step.backwards
        if not any(step.skipped for step in steps):
            found.append(window)
    return found


@dataclass(frozen=True)
class Shares:
    """What a rank's step took of each micro-batch's gradient; 1 is what the mean over ranks gives.

    Args:
        by_rank: rank -> one for each of its backwards.
        earlier: rank -> one for each of those before the window.
        error: norm of what is left unexplained, relative to what was taken.
    """

    by_rank: list[list[float]]
    earlier: list[list[float]]
    error: float


@dataclass(frozen=True)
class Taken:
    """A window in numbers.

    Args:
        taken: rank -> what its optimizer took.
        gradients: rank -> the gradient of each of its backwards, without loss scale.
        earlier: the same, of those before the window.
        same: whether all ranks took the same.
        inside: whether they did not, and have the same weights after it: the optimizer averages.
    """

    taken: list[Vector]
    gradients: list[list[Vector]]
    earlier: list[list[Vector]]
    same: bool
    inside: bool

    @property
    def mean(self) -> Vector:
        """The mean over ranks of the sums of their gradients: what a step is due."""
        sums = [np.sum(own, axis=0) for own in self.gradients if own]
        found: Vector = np.sum(sums, axis=0) / len(self.gradients) if sums else np.zeros_like(self.taken[0])
        return found


def numbers(window: Window) -> Taken | None:
    """A window's vectors; None if ranks step other parameters, or nothing is known of their gradients."""
    if any(set(step.parameters) != set(window.steps[0].parameters) for step in window.steps):
        return None
    sizes: dict[int, int] = {}
    for samples in [*(s.taken for s in window.steps), *(b.gradient for own in window.backwards for b in own)]:
        sizes |= {number: len(values) for number, values in samples.items()}
    if not sizes or not all(window.backwards):
        return None

    def vectors(backwards: Sequence[Backward]) -> list[Vector]:
        return [window.vector(one.gradient, sizes) / one.scale for one in backwards]

    taken = [window.vector(step.taken, sizes) for step in window.steps]
    same = all(distance(one, taken[0]) <= window.tolerance for one in taken)
    after = {step.after for step in window.steps}
    inside = not same and len(after) == 1 and any(step.moved for step in window.steps)
    if inside:
        taken = [np.mean(taken, axis=0)] * window.ranks
    found = Taken(
        taken, [vectors(own) for own in window.backwards], [vectors(own) for own in window.earlier], same, inside
    )
    finite = all(np.isfinite(one).all() for one in [*found.taken, *(g for own in found.gradients for g in own)])
    return found if finite else None


def fitted(found: Taken, rank: int) -> Shares:
    """The shares that explain best, in least squares, what a rank took."""
    columns = [one for own in found.gradients for one in own] + [one for own in found.earlier for one in own]
    matrix = np.stack(columns, axis=1)
    sizes = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    solution, *_ = np.linalg.lstsq(matrix / sizes, found.taken[rank], rcond=1e-7)
    shares = solution / sizes * len(found.gradients)
    error = distance(matrix @ (solution / sizes), found.taken[rank])
    values = iter(shares.tolist())
    by_rank = [[next(values) for _ in own] for own in found.gradients]
    return Shares(by_rank, [[next(values) for _ in own] for own in found.earlier], error)


def factor(taken: Vector, due: Vector) -> tuple[float, float]:
    """What `due` was multiplied by, and how much of `taken` that leaves unexplained."""
    size = float(due @ due)
    if not size:
        return 1.0, float(np.linalg.norm(taken) > 0)
    scale = float(taken @ due) / size
    return scale, distance(taken, scale * due)


def distance(one: Vector, other: Vector) -> float:
    """Norm of the difference over the larger norm."""
    size = max(float(np.linalg.norm(one)), float(np.linalg.norm(other)))
    return float(np.linalg.norm(one - other)) / size if size else 0.0
