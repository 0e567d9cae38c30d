"""Tells the sums and means in a loss that go over the samples of its micro-batch from those over anything else.

From a sum the graph is followed down to a layer, whose outputs are one for each sample, through operations that keep
samples apart. What may have made the sum a mean on the way ends the search, and so does what is not known: a mean over
the samples, weights that do not add up to their number, a product of two representations, a custom function, compiled
code. Sums over parameters end at parameters.
"""

import math
import re
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from tightgrad.accumulate.loss_graph.division import share
from tightgrad.accumulate.loss_graph.terms import (
    MEAN,
    NONE,
    SUM,
    Term,
    is_parameter,
    kind,
    operand,
    saved,
    shape,
    without_views,
)

Edge = tuple[Any, int]
Sizes = tuple[int, ...]

_CROSS_ENTROPY = re.compile("NllLoss|NllLoss2D")
_LAYER = re.compile("Addmm|Linear|Convolution|NativeLayerNorm|NativeBatchNorm|CudnnBatchNorm|Embedding")
_MATRIX_PRODUCT = re.compile("Mm|Bmm|Mv")
_PRODUCT = re.compile("Mul|Div")
_VIEW = re.compile("View|UnsafeView|ReshapeAlias")
_PICK = re.compile("Index|MaskedSelect|Slice")
_HIDING = re.compile("Where|MaskedFill|Index|MaskedSelect")  # a factor may be the number of what they leave
_ALONG_A_DIMENSION = re.compile(
    "Sum|Mean|Logsumexp|LogSoftmax|Softmax|Norm|LinalgVectorNorm|Max|Min|Amax|Amin|Prod|Cumsum|Gather|Select|Split|"
    "SplitWithSizes|Unbind|Unsqueeze|Squeeze|Cat"
)
_ELEMENTWISE = re.compile(
    "Neg|Add|Sub|Mul|Div|ToCopy|Clone|Expand|Abs|Pow|Sqrt|Rsqrt|Reciprocal|Exp|Exp2|Expm1|Log|Log2|Log10|Log1P|Sin|"
    "Cos|Tanh|Sigmoid|LogSigmoid|Relu|LeakyRelu|PreluKernel|Gelu|Silu|Mish|Elu|Softplus|Hardtanh|Hardswish|Threshold|"
    "Clamp|ClampMin|ClampMax|Maximum|Minimum|Where|MaskedFill|NativeDropout|Erf|Lgamma|Digamma|Xlogy|Logaddexp|"
    "MseLoss|SmoothL1Loss|HuberLoss|BinaryCrossEntropy|BinaryCrossEntropyWithLogits|SoftMarginLoss"
)
_LINEAR = re.compile(
    "Neg|Add|Sub|ToCopy|Clone|Expand|Where|MaskedFill|Sum|Mean|Gather|Select|Split|Unbind|Unsqueeze|Squeeze|_DDPSink|"
    f"{_VIEW.pattern}|{_PICK.pattern}"
)
_MOST_NODES = 128
_CLOSE, _EXACT = 1e-3, 1e-5


@dataclass(frozen=True)
class OverSamples:
    """Holds a sum or a mean over all samples of a micro-batch.

    Attributes:
        is_sum: False for a mean.
        divisor: what a sum is divided by, and may be a mean by; 1 where nothing does that.
    """

    is_sum: bool
    divisor: float = 1.0


def over_samples(term: Term, weight: float) -> OverSamples | None:
    """Return how a term goes over the samples of a micro-batch that weighs so much; None if it is not known to."""
    if term.scale is None:
        return None
    is_sum, sizes, below = _reduced(term.function)
    divisors = tuple(factor.divisor for factor in term.scale)
    by_hand = any(factor.divides for factor in term.scale) or not _are_harmless(divisors, weight)
    walk = _Walk(weight, sizes, () if by_hand else divisors)
    is_linear = getattr(term.function, "_saved_reduction", None) is None
    if not any(walk.is_of_samples(edge, is_linear=is_linear) for edge in below) or not walk.is_all:
        return None
    if not is_sum:
        return OverSamples(is_sum) if all(divisor > 1 for divisor in divisors) else None  # else it may be a sum by hand
    is_counted = any(factor.divides and factor.number == 1 for factor in term.scale)  # such as max(1, the positives)
    if is_counted or (walk.hides and term.divisor > 1):
        return None
    return OverSamples(is_sum, term.divisor if by_hand else 1.0)


def is_sum_over(term: Term, number: float) -> bool:
    """Tell whether a term is a sum that is divided by `number`, which is no count of what is summed."""
    is_sum, sizes, _ = _reduced(term.function)
    counts = {math.prod(some) for most in range(len(sizes)) for some in combinations(sizes, most + 1)}
    if not is_sum or number in counts or is_of_parameters(term):
        return False
    return any(factor.divides for factor in share(term.scale or (), number, _EXACT) or ())


def is_divided(term: Term, weight: float) -> bool:
    """Tell whether a term is divided by the weight of its micro-batch, where that is no factor such as a half."""
    return weight > 2 and any(factor.divides for factor in share(term.scale or (), weight, _EXACT) or ())


def is_of_parameters(term: Term) -> bool:
    """Tell whether a term goes over parameters only, as penalties do."""
    _, sizes, below = _reduced(term.function)
    return bool(below) and all(_Walk(math.inf, sizes).is_of_samples(edge) is False for edge in below)


def _reduced(function: Any) -> tuple[bool, Sizes, list[Edge]]:
    """Whether a node is a sum, the sizes of what it goes over, and where that comes from; nothing if it is neither a
    sum nor a mean.
    """
    below, reduction = _edges(function), getattr(function, "_saved_reduction", None)
    is_sum = kind(function) == "Sum" or reduction == SUM
    if reduction in (MEAN, SUM):
        if _CROSS_ENTROPY.fullmatch(kind(function)):
            target = saved(function, "target")
            return is_sum, tuple(target.shape) if isinstance(target, Tensor) else (), [(function, 0)]
        sizes = max((shape(*edge) for edge in below), key=math.prod)
        return is_sum, sizes, [] if isinstance(saved(function, "weight"), Tensor) else below
    if kind(function) not in ("Sum", "Mean"):
        return False, (), []
    sizes = shape(*below[0])
    while kind(inner := below[0][0]) == "Sum":
        summed = shape(*_edges(inner)[0])
        if not is_sum and 0 not in _dimensions(inner, len(summed)):
            break
        if not is_sum and len(summed) > 2 and summed[:1] == sizes[:1]:
            return False, (), []  # as many time steps as samples: either may come first
        is_sum, below = True, _edges(inner)
        sizes = shape(*below[0])
    return is_sum, sizes, below


class _Walk:
    """Follows what is summed to where it comes from.

    Args:
        weight: of the micro-batch.
        sizes: of what is summed.
        divisors: what the sum is divided by.

    Attributes:
        is_all: whether the elements, or their weights, are as many as the micro-batch weighs.
        hides: whether some elements may have been left out.
    """

    def __init__(self, weight: float, sizes: Sizes, divisors: tuple[float, ...] = ()) -> None:
        self._weight, self._sizes, self._divisors = weight, sizes, divisors
        self.is_all, self.hides = weight in sizes[:1] or weight == math.prod(sizes), False
        self._averages, self._left = False, _MOST_NODES

    def is_of_samples(self, edge: Edge, divisors: tuple[float, ...] = (), *, is_linear: bool = True) -> bool | None:
        """Tell whether an output of a node has an entry, or several, for each sample: False if it has only parameters,
        None if that is not known, or if it may be divided by the number of samples.

        Args:
            edge: the node, and which of its outputs.
            divisors: what it is divided by before the sum.
            is_linear: whether it is summed as it is, not as a square or the like.
        """
        self._left -= 1
        function, output = edge
        name, below = kind(function), _edges(function)
        if self._left < 0 or is_parameter(function):
            return None if self._left < 0 else False
        if _CROSS_ENTROPY.fullmatch(name) or name == "CtcLoss":
            self.hides |= getattr(function, "_saved_reduction", SUM) == NONE  # those that are ignored are 0
            return True
        sizes = shape(function, output)
        if _is_layer(function, name):
            return (bool(sizes) and (sizes[0] in self._sizes[:1] or sizes[0] % self._weight == 0)) or None
        if not below or not self._keeps_apart(function, name, sizes, shape(*below[0])):
            return None
        is_product, has_constant = _PRODUCT.fullmatch(name) is not None, len(below) == 1
        if is_product and has_constant:
            divisors = (*divisors, self._divisor(function, is_linear=is_linear))
            if not _are_harmless((*self._divisors, *divisors), self._weight):
                return None
        self.hides |= _HIDING.fullmatch(name) is not None
        is_linear &= _LINEAR.fullmatch(name) is not None or (is_product and has_constant)
        found = list[bool | None]()
        for child in [below[output]] if name == "_DDPSink" else below:
            of_samples, before = self.is_of_samples(child, divisors, is_linear=is_linear), shape(*child)
            is_broadcast = _ELEMENTWISE.fullmatch(name) and (len(before), before[:1]) != (len(sizes), sizes[:1])
            found.append(None if of_samples and is_broadcast else of_samples)
        if is_product and (None in found or (has_constant and found == [False])):  # a sum of weights; or data
            return None
        return True if True in found else None if None in found else False

    def _keeps_apart(self, function: Any, name: str, sizes: Sizes, before: Sizes) -> bool:
        """Whether what a node gives for a sample depends on no other sample."""
        if _ALONG_A_DIMENSION.fullmatch(name):
            self._averages |= name == "Mean"
            return 0 not in _dimensions(function, len(sizes) if name == "Unsqueeze" else len(before))
        if _VIEW.fullmatch(name):
            return not self._averages or sizes[:1] == before[:1]
        if _PICK.fullmatch(name):
            return sizes[:1] == before[:1] or len(sizes) == len(before)
        if name in ("Permute", "Transpose"):
            moved = function._saved_dims[:1] if name == "Permute" else (function._saved_dim0, function._saved_dim1)
            return (0 in _wrapped(moved, len(before))) == (name == "Permute")
        if isinstance(saved(function, "weight"), Tensor):
            return False
        return name == "_DDPSink" or _ELEMENTWISE.fullmatch(name) is not None

    def _divisor(self, function: Any, *, is_linear: bool) -> float:
        """What a constant divides each element by, on average; inf where its numbers may add up to anything."""
        name = operand(function)
        factor = None if name is None else saved(function, name)
        if isinstance(factor, int | float):
            factor = torch.tensor(float(factor), device="cpu")
        if type(factor) is not Tensor or factor.is_sparse or factor.is_complex() or not factor.numel():
            return math.inf
        values = factor.float().abs()
        values = 1 / values if kind(function) == "Div" else values
        least, most, total = torch.stack([values.min(), values.max(), values.sum()]).tolist()
        if least == most or not is_linear:
            return _power(total / factor.numel(), -1 if is_linear else -2)
        self.is_all |= abs(total / self._weight - 1) < _CLOSE
        return 1.0 if abs(total / self._weight - 1) < _CLOSE else math.inf


def _is_layer(function: Any, name: str) -> bool:
    """Whether a node computes its output from parameters and something else."""
    operands = [is_parameter(without_views(child)) for child, _ in function.next_functions]
    if all(operands):
        return name == "Embedding"
    return _LAYER.fullmatch(name) is not None or (_MATRIX_PRODUCT.fullmatch(name) is not None and any(operands))


def _power(number: float, exponent: int) -> float:
    return number**exponent if number > 0 else math.inf


def _are_harmless(divisors: tuple[float, ...], weight: float) -> bool:
    """Whether none of the divisors may be what makes a mean of a sum: they are constants such as a half, and small."""
    if not all(math.isfinite(divisor) for divisor in divisors):
        return False
    are_constants = all(d < 1 + _CLOSE or abs(d - 2) < _CLOSE or abs(d - round(d)) > _CLOSE * d for d in divisors)
    return are_constants and math.prod(max(divisor, 1.0) for divisor in divisors) * (1 + _CLOSE) < weight


def _edges(function: Any) -> list[Edge]:
    return [edge for edge in function.next_functions if edge[0] is not None]


def _dimensions(function: Any, of: int) -> set[int]:
    """The dimensions that a node works along; the first one stands for all."""
    dimensions = getattr(function, "_saved_dim", ())
    return _wrapped(dimensions if isinstance(dimensions, tuple) else (dimensions,), of) or {0}


def _wrapped(dimensions: tuple[int, ...], of: int) -> set[int]:
    """Negative ones are saved as unsigned numbers of 64 bits."""
    return {(d - 2**64 if d >= 2**63 else d) % max(of, 1) for d in dimensions}
