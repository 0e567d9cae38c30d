"""The few shapes that everything else is made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from tightgrad.core.card import MethodCard
from tightgrad.core.clock import StageClock
from tightgrad.core.collective import Collective as Collective
from tightgrad.core.collective import ReduceOp as ReduceOp
from tightgrad.core.collective import Traffic as Traffic
from tightgrad.core.collective import TrafficMeter as TrafficMeter
from tightgrad.core.errors import PayloadError
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Clipped, Grads, GradSpec, Payload, Reduced, Slot, State, TensorLayout


class Codec(ABC):
    """Turns a flat tensor into a payload and back. A frozen dataclass: no state, no communication, no global RNG.

    Subclasses are frozen dataclasses whose fields are their settings, and carry a `card`.
    """

    card: ClassVar[MethodCard]

    @property
    def granularity(self) -> int:
        """Return at multiples of how many elements a tensor may be cut without changing what is decoded."""
        return 1

    @property
    def scope(self) -> str:
        """Return how much of a tensor the codec must see at once: "element", "block", "tensor" or "matrix"."""
        return self.card.scope

    @property
    def unbiased(self) -> bool:
        """Tell whether the expectation of what is decoded equals the input, with these settings."""
        return self.card.unbiased

    @property
    def linear(self) -> bool:
        """Tell whether decoding a sum of payloads gives the sum of what they decode to; all its tensors are float32."""
        return self.card.linear

    @property
    def fixed_size(self) -> bool:
        """Tell whether the size of a payload is known before the data is."""
        return True

    @property
    def reducer(self) -> str:
        """Return the id of the reducer that a plan takes when it names none."""
        return self.card.reducer

    def contraction(self, numel: int) -> float:
        """Return delta in [0, 1] of ||x - C(x)||^2 <= (1 - delta) ||x||^2 for `numel` elements; 0 claims nothing."""
        return 0.0

    @abstractmethod
    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout of the payload of `spec.numel` elements: exact, and known on every rank without being sent.

        Unless `fixed_size`, the last one may have the length None, which ranks tell each other. Such a payload is
        never longer than `wire.most_nbytes`: a codec sends the elements themselves where they take fewer bytes.
        """

    @abstractmethod
    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Encode a float32 tensor of shape (spec.numel,). The input is left as it is; the payload shares no memory
        with it.
        """

    @abstractmethod
    def decode(self, payload: Payload) -> Tensor:
        """Return a new tensor of shape (spec.numel,) and dtype spec.dtype.

        Raises:
            PayloadError: the payload cannot have come from `encode`.
        """

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Add the decoded payload to `total`, of shape (spec.numel,), in place."""
        total.add_(self.decode(payload))

    def decode_to_(self, out: Tensor, payload: Payload) -> None:
        """Overwrite `out`, of shape (spec.numel,), with the decoded payload."""
        out.copy_(self.decode(payload))

    def encode_together(self, flats: Sequence[Tensor], specs: Sequence[GradSpec]) -> Tensor | None:
        """Return the bytes of the payloads of several tensors, one after the other, where that is faster than one by
        one and needs no random numbers; else None.
        """
        return None

    def decode_together(self, message: Tensor, specs: Sequence[GradSpec]) -> list[Tensor] | None:
        """Return a new tensor of shape (spec.numel,) and dtype spec.dtype for each payload of a message, where that is
        faster than one by one; else None.

        Raises:
            PayloadError: the message cannot have come from `encode`.
        """
        return None

    def entries_together(self, message: Tensor, specs: Sequence[GradSpec]) -> list[tuple[Tensor, Tensor]] | None:
        """Return for each tensor of a message the ascending indices of what is not 0 in it, and the values there; None
        where entries are not what a payload holds, or one by one is as fast.

        Raises:
            PayloadError: the message cannot have come from `encode_together`.
        """
        return None

    def payload_nbytes(self, spec: GradSpec) -> int | None:
        """Return the bytes that `encode` will produce; None if they depend on the data."""
        total = 0
        for layout in self.layout(spec):
            if layout.nbytes is None:
                return None
            total += layout.nbytes
        return total


Sizes = Mapping[str, Sequence[int]]
Observe = Callable[[Grads, Mapping[str, Tensor]], None]


@dataclass(frozen=True, slots=True)
class ReduceContext:
    """Holds what a reducer may use during one step; `observe` is told what was to be sent and what of it was."""

    collective: Collective
    rng: StepRng
    clock: StageClock
    failures: list[str] = field(default_factory=list)
    observe: Observe | None = None

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Catch a `PayloadError` while decoding what came from other ranks, and note it in `failures`: this rank still
        owes the other ranks the rest of the step's collectives, and whoever called the reducer asks all ranks after the
        last one (`sync/delivered.py`). What is returned meanwhile has the right shapes only.
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

    def refuses(self, codec: Codec | None) -> str | None:
        """Return why this reducer cannot run with `codec`, and what instead; None if it can."""
        return None

    @abstractmethod
    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum float32 `grads` over ranks. Collective: every rank must call it with the same names and shapes.

        The result of each tensor depends on its own values, name, step and rank only, never on the other tensors
        of the call, so that it is the same however gradients are grouped.
        """

    def refuses_shards(self, codec: Codec | None) -> str | None:
        """Say why `reduce_to_shards` cannot run with `codec`, and what instead; None if it can."""
        return (
            f"FSDP2 sums shards, and {self.card.id} sums whole gradients; use the reducer two_shot, or sparse_two_shot "
            "for sparse codecs, or DistributedDataParallel"
        )

    def reduce_to_shards(
        self, grads: Grads, sizes: Sizes, codec: Codec | None, state: State, context: ReduceContext
    ) -> Reduced:
        """Sum float32 `grads` over ranks, of which each keeps one piece: what FSDP2 needs. Not called where
        `refuses_shards` gives a reason.

        Collective: every rank must call it with the same names, shapes and sizes.

        Args:
            grads: this rank's whole gradients.
            sizes: for each name, the numbers of elements of the ranks' pieces, in the order of ranks. Pieces are cut
                from the gradient in one dimension, one after the other; some may be empty.
            codec: of the plan.
            state: what the method remembers.
            context: network, random numbers, clock.

        Returns:
            In `total`, the sum of this rank's piece of each gradient, in one dimension; in `transmitted`, what this
            rank transmitted, in the gradients' shapes.
        """
        raise NotImplementedError


Reduce = Callable[[Grads], Reduced]


class Feedback(ABC):
    """Wraps a reducer so that what compression leaves behind is sent later."""

    card: ClassVar[MethodCard]
    slots: ClassVar[tuple[Slot, ...]] = ()
    works_on_shards: ClassVar[bool] = True
    """Whether it can do with a total that holds only this rank's piece of each sum, as under FSDP2."""

    def refuses(self, codec: Codec | None, reducer: Reducer) -> str | None:
        """Return why this feedback cannot run with the two, and what instead; None if it can."""
        return None

    @abstractmethod
    def reduce(self, grads: Grads, state: State, inner: Reduce) -> Reduced:
        """Call `inner` once on the compensated gradients; return its totals and the new state."""

    def reduce_(self, grads: Grads, state: State, inner: Reduce) -> Reduced:
        """Reduce gradients that nobody looks at again: they may be overwritten, and kept in the new state."""
        return self.reduce(grads, state, inner)


class GradNorm(Protocol):
    """The only code that knows how a gradient is placed."""

    def __call__(self, tensors: Sequence[Tensor], norm_type: float = 2.0) -> Tensor:
        """The norm over all elements of all tensors: a scalar, the same on every rank; in the pipeline float64."""


class Clipper(ABC):
    """Limits gradients in place."""

    card: ClassVar[MethodCard]
    slots: ClassVar[tuple[Slot, ...]] = ()

    @abstractmethod
    def clip_(self, grads: Grads, params: Mapping[str, nn.Parameter], norm: GradNorm, state: State) -> Clipped:
        """Clip `grads` in place. Collective when the gradients are sharded: every rank must call it."""


class Adapter(Protocol):
    """Connects the pipeline to one kind of wrapper: the only code that touches it. Does no maths."""

    @property
    def collective(self) -> Collective:
        """Return the collective of the data-parallel ranks."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return trainable parameters by name, each once, in the same order on every rank and under every wrapper."""

    @property
    def reduces(self) -> bool:
        """Tell whether the wrapper sums over ranks during backward; if not, the pipeline does after the last one."""

    @property
    def every_rank_runs(self) -> bool:
        """Tell whether a window's backward only works if every rank runs as many micro-batches."""

    @property
    def waits_in_forward(self) -> bool:
        """Tell whether `begin_window` or a forward of the next window may wait for the other ranks."""

    @property
    def holds_back(self) -> bool:
        """Tell whether gradients of this window so far have not been reduced and are not to be taken yet."""

    @property
    def remembered_shapes(self) -> Mapping[str, tuple[int, ...]] | None:
        """Return the shapes of what is remembered of each parameter; None where they are the parameters' own, the same
        on any number of ranks.
        """

    @property
    def divisor(self) -> int:
        """Return what the wrapper divides its sum by; losses are multiplied by it. 1 if it divides by nothing."""

    def connect(self) -> None:
        """Prepare the wrapper, once, when ranks know that they do the same: no communication before it. Collective:
        every rank must call it.

        Raises:
            UnsupportedError: the wrapper cannot do what is asked.
        """

    def begin_window(self) -> None:
        """Prepare a window, once, before its first micro-batch. Collective: every rank must call it."""

    def micro_batch(self, index: int, count: int) -> AbstractContextManager[None]:
        """Return the context for forward and backward of micro-batch `index` of a window of `count`."""

    def leaves(self) -> Iterable[Tensor]:
        """Return the trainable parameters as autograd sees them, after a forward: a hook on one is given the gradient
        of this rank's micro-batch, before it is added to others or reduced.
        """

    def gradients(self) -> Iterable[tuple[str, Tensor | None]]:
        """Return the places where gradients of a window are kept, by the name of their parameter, in the same order
        each time; a parameter may have several. To be read only.
        """

    @property
    def moves_gradients(self) -> bool:
        """Tell whether the wrapper's next forward may itself put gradients elsewhere."""

    @property
    def counts_writes(self) -> bool:
        """Tell whether torch's counters tell of the usual writes into gradients."""

    def accumulated(self) -> Grads:
        """Return copies of this rank's gradients in mid-window, by name."""

    def restore_accumulated(self, grads: Grads) -> None:
        """Put back what `accumulated` gave, before the next micro-batch's forward."""

    def scale_accumulated_(self, factor: float) -> None:
        """Multiply this rank's gradients of the micro-batches so far, before the window's last backward or, where that
        does not reduce, after it.
        """

    def leave_window(self) -> None:
        """Drop a window in its middle: a forward may have run whose backward will not. Collective: every rank must call
        it.
        """

    def release(self) -> None:
        """Leave the model as a loop without a pipeline expects it; called between windows, once."""

    def sent_nbytes(self) -> int:
        """Return the bytes of gradient that the wrapper itself sent from this rank since the last call."""
