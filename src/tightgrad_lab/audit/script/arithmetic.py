"""What a script computes between its model and `backward`: divisions of losses, dropout, gradients that are terms."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from tightgrad_lab.audit.script.in_place import InPlace
from tightgrad_lab.audit.script.places import caller
from tightgrad_lab.audit.script.sequences import Sequences
from tightgrad_lab.audit.terms import DIVISIONS, SUMS, follow
from tightgrad_lab.audit.terms import is_loss as _is_loss

DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
SLOPE = "_tightgrad_slope"


class Arithmetic:
    """Watches functions of torch as they are called.

    Attributes:
        divisors: that scalars with a gradient were divided by, since `forget`.
        dropout: how many were on, and off, since `forget`.
        constants: where the gradient of an input, taken without its graph, was added to a loss; empty if nowhere.
        sequences: tokens that embeddings were given.
        in_place: slices of data that were changed in place.
    """

    def __init__(self) -> None:
        self.constants = ""
        self.sequences = Sequences()
        self.in_place = InPlace()
        self._slopes = False
        self.forget()

    def forget(self) -> None:
        """A backward begins."""
        self.divisors: list[float] = []
        self.dropout = [0, 0]

    def is_slope(self, found: Any) -> None:
        """These gradients were taken without a graph."""
        for one in found:
            if isinstance(one, Tensor) and not one.requires_grad:
                setattr(one, SLOPE, True)
                self._slopes = True

    def before(self, name: str, args: tuple[Any, ...]) -> tuple[Tensor | None, Tensor | None]:
        """What has to be known once the call that begins has ended."""
        return self.sequences.before(name, args), self.in_place.before(name, args)

    def watch(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        before: tuple[Tensor | None, Tensor | None],
    ) -> None:
        """One call has ended."""
        follow(name, args, kwargs, result)
        self.sequences.watch(name, args, kwargs, result, before[0])
        self.in_place.watch(name, args, before[1])
        if name in DIVISIONS and len(args) > 1 and _is_loss(args[0]):
            if isinstance(args[1], int | float):  # a tensor is a count of targets, also that of torch's own losses
                self.divisors.append(float(args[1]))
        elif name in DROPOUTS and (kwargs.get("p", args[1] if len(args) > 1 else 0.5) or 0) > 0:
            on = kwargs.get("training", args[2] if len(args) > 2 else True)
            if isinstance(result, Tensor) and result.requires_grad:
                self.dropout[0 if on else 1] += 1
        if self._slopes:
            self._follow(name, args, result)

    def _follow(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        given = list(_tensors(args))
        if not any(hasattr(one, SLOPE) for one in given):
            return
        if isinstance(result, Tensor) and not result.requires_grad:
            setattr(result, SLOPE, True)
        elif name in SUMS and any(map(_is_loss, given)) and any(hasattr(o, SLOPE) and not o.dim() for o in given):
            self.constants = caller()


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    for one in args:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from (inner for inner in one if isinstance(inner, Tensor))
