"""The walk over the end of a loss's graph: the terms that the loss is a sum of, each with what multiplies it.

Names of autograd's nodes are the same in torch 2.9 to 2.15; under other names nothing is found. What a node saves has
been there under its name since torch 1.9, `_input_metadata` (the shapes of a node's outputs) since torch 2.1.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes  # private; torch 2.9 to 2.15

# A number that a product has saved becomes an int under a TorchDispatchMode, which none of torch's operations take.

NONE, MEAN, SUM = 0, 1, 2  # torch's numbers for reduction="none", "mean" and "sum"
MEANS = ("MeanBackward0", "MeanBackward1")
TOTALS = ("SumBackward0", "SumBackward1")
SAME = ("ToCopyBackward0", "CloneBackward0", "ViewBackward0", "SqueezeBackward0", "UnsqueezeBackward0")
SUMS = ("AddBackward0", "SubBackward0", "NegBackward0", *SAME)
PRODUCTS = ("MulBackward0", "MulBackward1", "DivBackward0", "DivBackward1")
OF_SEVERAL = ("StackBackward0", "CatBackward0", *MEANS, *TOTALS)
VIEWS = ("TBackward0", "PermuteBackward0", "TransposeBackward0", "ToCopyBackward0")
_LEAF = "AccumulateGrad"
_MOST_TERMS, _MOST_INSIDE = 256, 32


@dataclass(frozen=True)
class Factor:
    """A number that a term is multiplied with, or divided by.

    Attributes:
        number: its size.
        divides: whether the term is divided by it.
        address: of the tensor that holds it; 0 for a number of Python's.
    """

    number: float
    divides: bool
    address: int = 0

    @property
    def divisor(self) -> float:
        """Return what the term is divided by, whichever way that is written."""
        return self.number if self.divides else 1 / self.number


@dataclass(frozen=True)
class Term:
    """Holds a node at which the walk ends.

    Attributes:
        function: the node.
        scale: the numbers that it is multiplied with, from above; None where they are not known.
        rounding: of what these were computed in.
    """

    function: Any
    scale: tuple[Factor, ...] | None
    rounding: float

    @property
    def divisor(self) -> float:
        """Return what the term is divided by in all."""
        return math.prod(factor.divisor for factor in self.scale or ())


def terms(loss: Tensor) -> list[Term]:
    """Return the terms that a loss is the sum of: what lies below sums and products with numbers."""
    nodes = [] if loss.grad_fn is None else [Term(loss.grad_fn, (), torch.finfo(loss.dtype).eps)]
    found = list[Term]()
    for _ in range(_MOST_TERMS):
        if not nodes:
            break
        here = nodes.pop()
        below = _parts(here)
        nodes += reversed(below)
        found += [] if below else [here]
    return found + [replace(node, scale=None) for node in nodes]


def inside(term: Term) -> Iterator[Any]:
    """Yield the nodes at and below a term that are known to be sums, products and means over several, and those that
    these consist of.
    """
    nodes = [term.function]
    for _ in range(_MOST_INSIDE):
        if not nodes:
            return
        yield (function := nodes.pop())
        if function.name() in (*SUMS, *PRODUCTS, *OF_SEVERAL):
            nodes += reversed(following(function))


def _parts(here: Term) -> list[Term]:
    """What a node is the sum of, or a number times; nothing where that is not so."""
    name = here.function.name()
    if name in SUMS or (name in (*MEANS, *TOTALS) and not here.function._saved_self_sym_sizes):
        return [replace(here, function=child) for child in following(here.function)]
    number, rounding, address = _factor(here.function) if name in PRODUCTS else (0.0, 0.0, 0)
    if not 0.0 < number < math.inf:  # a factor with a gradient of its own, or one for each sample
        return []
    scale = (*(here.scale or ()), Factor(number, name.startswith("Div"), address))
    return [Term(child, scale, max(here.rounding, rounding)) for child in following(here.function)]


@_disable_current_modes()
def _factor(function: Any) -> tuple[float, float, int]:
    """The size of the number that the only other factor was multiplied with, or divided by, the rounding of what that
    was computed in, and its tensor's address; zeros if there is none.
    """
    name = operand(function)
    value = None if name is None else saved_number(function, name)
    if isinstance(value, Tensor):
        rounding = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        return abs(float(value)), rounding, value.data_ptr() if type(value) is Tensor else 0
    return abs(float(value)) if isinstance(value, float | int) else 0.0, 0.0, 0


def operand(function: Any) -> str | None:
    """Return the name of the constant that a product or a quotient has beside one operand with a gradient; None if
    there is none, or if it is what is divided.
    """
    below = [child for child, _ in function.next_functions]
    if sum(child is not None for child in below) != 1:
        return None
    if below[0] is not None:
        return "other"
    return "self" if function.name().startswith("Mul") else None


def following(node: Any) -> list[Any]:
    """Return the nodes that a node passes gradients on to."""
    return [] if node is None else [function for function, _ in node.next_functions if function is not None]


def parameters_of(losses: Iterable[Tensor]) -> Iterator[nn.Parameter]:
    """Yield the parameters that get a gradient from these losses, without those of a checkpointed forward."""
    nodes, seen = [loss.grad_fn for loss in losses], set[Any]()
    while nodes:
        node: Any = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += following(node)
        if isinstance(leaf := getattr(node, "variable", None), nn.Parameter):
            yield leaf


def without_views(function: Any) -> Any:
    """Return the node whose output a node shows from another side."""
    while function is not None and function.name() in VIEWS:
        function = next(iter(following(function)), None)
    return function


def is_parameter(function: Any) -> bool:
    """Tell whether a node takes the gradient of a parameter."""
    return function is not None and bool(function.name().endswith(_LEAF))


def kind(function: Any) -> str:
    """Return the name of a node's operation, such as "Add"."""
    return re.sub(r"Backward\d*$", "", function.name().rsplit("::")[-1])


def shape(function: Any, output: int) -> tuple[int, ...]:
    """Return the shape of one of a node's outputs; () for a nested tensor, which has none."""
    metadata = function._input_metadata[output]
    return () if metadata.is_nested_tensor else tuple(metadata.shape)


def saved_number(function: Any, name: str) -> Any:
    """Return a number that a node has saved; None where there is none to be had."""
    value = saved(function, name)
    return None if isinstance(value, Tensor) and value.numel() != 1 else value


@_disable_current_modes()
def saved(function: Any, name: str) -> Any:
    """Return a value that a node has saved; None where there is none to be had without running a forward again."""
    raw = getattr(function, f"_raw_saved_{name}", None)
    try:
        if raw is not None and _has_hooks(function, raw, name):
            return None
        value = getattr(function, f"_saved_{name}")
    except (AttributeError, RuntimeError):
        return None
    return value.detach() if isinstance(value, Tensor) else value


def _has_hooks(function: Any, raw: Any, name: str) -> bool:
    """Whether a saved value has hooks: a look would run a checkpointed forward again. Raises `RuntimeError` if the node
    has saved nothing there.
    """
    if hasattr(raw, "unpack_hook"):  # torch 2.10
        return raw.unpack_hook is not None
    if name not in (looked_at := function.metadata.setdefault("tightgrad", set())):
        raw.register_hooks(_as_it_is, _as_it_is)  # refused where there are hooks already
        looked_at.add(name)
    return False


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
