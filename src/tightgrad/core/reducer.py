"""Reducers sum gradients over ranks, in one or more rounds; feedback sends later what compression left out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tightgrad.core.card import MethodCard
from tightgrad.core.clock import StageClock
from tightgrad.core.codec import Codec
from tightgrad.core.collective import Collective
from tightgrad.core.errors import PayloadError
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, GradSpec, Reduced, Slot, State

Sizes = Mapping[str, Sequence[int]]
Observe = Callable[[Grads, Mapping[str, Tensor]], None]


@dataclass(frozen=True, slots=True)
class ReduceContext:
    """Holds what a reducer may use during one step; `observe` is called with what was to be sent and what was sent."""

    collective: Collective
    rng: StepRng
    clock: StageClock
    failures: list[str] = field(default_factory=list)
    observe: Observe | None = None

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Catch a `PayloadError` while decoding what came from other ranks, and note it in `failures`: this rank must
        still take part in the rest of the step's collectives. The caller of the reducer asks all ranks after the last
        one (`sync/same_sum.py`). Until then, only the shapes of what is returned are right.
        """
        try:
            yield
        except PayloadError as error:
            self.failures.append(str(error))

    def spec(self, name: str, grad: Tensor) -> GradSpec:
        """Describe a whole gradient of this step."""
        return GradSpec.of(name, grad, seed=self.rng.shared_seed(name), step=self.rng.step)


class Reducer(ABC):
    """Runs the rounds of communication. Returns sums over ranks, and never divides."""

    card: ClassVar[MethodCard]
    slots: ClassVar[tuple[Slot, ...]] = ()
    leaves_nothing: ClassVar[bool] = False
    """Whether gradients, each in its own dtype, arrive as they are: feedback or a fallback would have nothing to do."""

    def refuses(self, codec: Codec | None) -> str | None:
        """Return why this reducer cannot run with `codec`, and what can; None if it can."""
        return None

    @abstractmethod
    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum float32 `grads` over ranks. Collective: every rank must call it with the same names and shapes.

        The result of each tensor depends on its own values, name, step and rank only, never on the other tensors
        of the call, so that it is the same however gradients are grouped.
        """

    def refuses_shards(self, codec: Codec | None) -> str | None:
        """Return why `reduce_to_shards` cannot run with `codec`, and what can; None if it can."""
        return (
            f"FSDP2 sums shards, and {self.card.id} sums whole gradients; use the reducer two_shot, or sparse_two_shot "
            "for sparse codecs, or DistributedDataParallel"
        )

    def refuses_between_nodes(self, codec: Codec | None) -> str | None:
        """Say why `reduce` cannot run on shards, between nodes within which FSDP2 has summed; None if it can."""
        if self.card.scope == "matrix" or (codec is not None and codec.scope == "matrix"):
            return f"{self.card.id} needs matrices, and shards have none; use two_shot, or gather with a sparse codec"
        return None

    def reduce_to_shards(
        self, grads: Grads, sizes: Sizes, codec: Codec | None, state: State, context: ReduceContext
    ) -> Reduced:
        """Sum float32 `grads` over ranks; each rank keeps one piece, as FSDP2 needs. Not called where `refuses_shards`
        gives a reason.

        Collective: every rank must call it with the same names, shapes and sizes.

        Args:
            grads: this rank's whole gradients.
            sizes: for each name, the numbers of elements of the ranks' pieces, in the order of ranks. Pieces are cut
                from the gradient in one dimension, one after the other; some may be empty.
            codec: the plan's codec.
            state: what the method has remembered.
            context: network, random numbers, clock.

        Returns:
            In `total`, the sum of this rank's piece of each gradient, in one dimension; in `transmitted`, what this
            rank transmitted, in the gradients' shapes.
        """
        raise NotImplementedError


Reduce = Callable[[Grads], Reduced]


class Feedback(ABC):
    """Wraps a reducer so that what compression leaves out is sent later."""

    card: ClassVar[MethodCard]
    slots: ClassVar[tuple[Slot, ...]] = ()
    works_on_shards: ClassVar[bool] = True
    """Whether it can do with a total that holds only this rank's piece of each sum, as under FSDP2."""
    has_momentum: ClassVar[bool] = False
    """Whether what it sends is a velocity, to which no other momentum is to be added."""

    def refuses(self, codec: Codec | None, reducer: Reducer) -> str | None:
        """Return why this feedback cannot run with this codec and reducer, and what can; None if it can."""
        return None

    @abstractmethod
    def reduce_(self, grads: Grads, state: State, inner: Reduce) -> Reduced:
        """Call `inner` once on the compensated gradients; return its totals and the new state.

        Args:
            grads: this rank's float32 gradients; they may be overwritten, and kept in the new state. A caller that
                needs them afterwards passes clones.
            state: what was remembered; its tensors are left as they are.
            inner: sums over ranks. It leaves its input as it is.
        """
