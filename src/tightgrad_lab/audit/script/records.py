"""What a rank writes down while a script runs, and hands to the process that judges it."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tightgrad_lab.audit.terms import Term

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
        padding: how many of those that count are padding.
        aside: how many of them were marked as ignored before, and are not any more.
        lag: how many places after an input its target stands; None if that is not known.
        causal: whether the model is kept from seeing what comes after an input.
        print: of the targets' values.
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
    padding: int = 0
    aside: int = 0
    lag: int | None = None
    causal: bool = False
    print: int = 0


@dataclass
class Backward:
    """One call of `backward`.

    Args:
        place: file and line of the call.
        loss: the value that it was called on; NaN if it is several.
        scale: the loss scale in it.
        epoch: how many times a DataLoader had been started.
        calls: losses in its graph that were seen.
        gradient: what it added to each parameter, before ranks are averaged.
        collectives: begun while it ran.
        in_step: whether an optimizer called it, in its `step`.
        moved: whether weights had been changed since the backward before, other than by an optimizer.
        apart: whether it was `torch.autograd.grad`, which leaves it to the script what becomes of the gradient.
        undefined: whether the value that it was called on is NaN.
        divisors: numbers that a scalar with a gradient was divided by since the backward before.
        terms: of the scalar that it was called on: what each is multiplied and divided by.
        dropout: how many dropouts were on, and off, since the backward before.
        fresh: whether no parameter had a gradient when it began.
        copied: whether a copy of the weights, which no optimizer holds, has moved since the backward before.
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
    undefined: bool = False
    divisors: tuple[float, ...] = ()
    terms: tuple[Term, ...] = ((1.0, ()),)
    dropout: tuple[int, int] = (0, 0)
    copied: bool = False
    fresh: bool = False


@dataclass
class Clip:
    """One call of `clip_grad_norm_`, or of `clip_grad_value_`.

    Args:
        place: file and line of the call.
        parameters: their numbers.
        max_norm, norm: the bound, and what was measured.
        backwards: how many there had been.
        steps: how many steps there had been.
        scaled: whether the gradients still had the loss scale in them.
        by_value: whether it bounds each element; `norm` is the largest one then.
    """

    place: str
    parameters: tuple[int, ...]
    max_norm: float
    norm: float
    backwards: int
    steps: int
    scaled: bool
    by_value: bool = False


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
        unscaled: the loss scale that a GradScaler has divided its gradients by.
        frozen: how many parameters that require no gradient it has changed.
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
    unscaled: float = 1.0
    frozen: int = 0


@dataclass
class Scheduled:
    """One step of a learning-rate scheduler.

    Args:
        place: file and line of the call.
        kind: its class.
        backwards, steps: how many there had been.
        horizon: the number of steps that it is made for, if it says so.
        batches: length of the loader that was started last, if it has one.
    """

    place: str
    kind: str
    backwards: int
    steps: int
    horizon: int | None
    batches: int | None


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
        schedules: steps of schedulers, in order.
        repeated: where a sampler drew the order of an epoch once more; empty if none did.
        constants: where a gradient without a graph was added to a loss; empty if nowhere.
        in_place: where data were changed in place that are used -> how often the same ones were, at most.
        graphs: how many losses of windows gone by still have their graph, and of how many.
        names: number of a parameter -> its name in its module.
        unheld: names of parameters that losses reach and no optimizer holds -> whether they were loaded.
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
    schedules: list[Scheduled] = field(default_factory=list)
    repeated: str = ""
    constants: str = ""
    in_place: dict[str, int] = field(default_factory=dict)
    graphs: tuple[int, int] = (0, 0)
    names: dict[int, str] = field(default_factory=dict)
    unheld: dict[str, bool] = field(default_factory=dict)
