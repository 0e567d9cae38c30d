"""What a rank writes down while a script runs, and hands to the process that judges it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Samples = dict[int, NDArray[np.float64]]
"""Parameter, by its number -> some elements of its gradient, the same ones each time."""


@dataclass
class LossCall:
    """A loss that was seen target by target, in one backward.

    Args:
        site: file and line that called it.
        function: its name.
        ordinal: how many calls of the same site were before it in this backward.
        targets: that count: not ignored, and with a coefficient.
        low, high: the least and the largest d(loss)/d(target's loss) of these.
        mass: sum of these coefficients.
        with_ignored: the same, of ignored targets too.
        zero_counted: ignored targets (their loss is exactly 0) that have a coefficient all the same.
        zero_left_out: ignored targets without one.
        eps: of the coefficients' dtype.
    """

    site: str
    function: str
    ordinal: int
    targets: int
    low: float
    high: float
    mass: float
    with_ignored: float
    zero_counted: int = 0
    zero_left_out: int = 0
    eps: float = 0.0


@dataclass
class Backward:
    """One call of `backward`.

    Args:
        place: file and line of the call.
        loss: the value that it was called on; NaN if that is no number.
        scale: the loss scale in it.
        epoch: how many times a DataLoader had been started.
        calls: losses in its graph that were seen.
        gradient: what it added to each parameter, before ranks are averaged.
        collectives: begun while it ran.
        in_step: whether an optimizer called it, in its `step`.
        moved: whether weights had been changed since the backward before, other than by an optimizer.
        apart: whether it was `torch.autograd.grad`, which leaves it to the script what becomes of the gradient.
    """

    place: str
    loss: float
    scale: float
    epoch: int
    calls: list[LossCall] = field(default_factory=list)
    gradient: Samples = field(default_factory=dict)
    collectives: int = 0
    in_step: bool = False
    moved: bool = False
    apart: bool = False


@dataclass
class Clip:
    """One call of `clip_grad_norm_`.

    Args:
        place: file and line of the call.
        parameters: their numbers.
        max_norm, norm: the bound, and what was measured.
        backwards: how many there had been.
        steps: how many steps there had been.
        scaled: whether the gradients still had the loss scale in them.
    """

    place: str
    parameters: tuple[int, ...]
    max_norm: float
    norm: float
    backwards: int
    steps: int
    scaled: bool


@dataclass
class Step:
    """One `optimizer.step()`.

    Args:
        optimizer: its number.
        kind: its class.
        place: file and line of the call.
        parameters: numbers of those it holds and that require a gradient.
        taken: what it took.
        missing: those without a gradient.
        backwards: how many there had been.
        eps: of the gradients' coarsest dtype.
        after: a digest of the weights after it.
        moved: whether they changed.
        skipped: whether a GradScaler left it out.
        closure: whether it was given a closure, and evaluates losses itself.
    """

    optimizer: int
    kind: str
    place: str
    parameters: tuple[int, ...]
    taken: Samples
    missing: int
    backwards: int
    eps: float
    after: str = ""
    moved: bool = False
    skipped: bool = False
    closure: bool = False


@dataclass
class Ledger:
    """Everything of one rank.

    Args:
        rank: whose.
        ranks: how many there are.
        backwards, steps, clips: in order.
        collectives: that were begun in all.
        sharded: whether parameters are sharded, so that gradients of micro-batches are not seen whole.
        ended: whether the script ended by itself.
        remarks: what was changed around the script, in words.
        error: what it raised, with its place; empty if nothing.
        missing: a package that is not installed, if that is why.
    """

    rank: int
    ranks: int
    backwards: list[Backward] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    collectives: int = 0
    sharded: bool = False
    ended: bool = False
    remarks: list[str] = field(default_factory=list)
    error: str = ""
    missing: str = ""
