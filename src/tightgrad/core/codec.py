"""What turns a flat tensor into a payload and back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.core.card import MethodCard
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import from_bytes, to_bytes


class Codec(ABC):
    """Turns a flat tensor into a payload and back. A frozen dataclass: no state, no communication, no global RNG.

    Subclasses are frozen dataclasses whose fields are their settings, and carry a `card`.
    """

    card: ClassVar[MethodCard]
    sends_signs: ClassVar[bool] = False
    """Whether each element is decoded to its sign times a size that many share, so that ranks can vote on signs."""

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

    def encode_all(
        self, flats: Sequence[Tensor], specs: Sequence[GradSpec], generator_of: Callable[[str], torch.Generator]
    ) -> Tensor:
        """Encode several tensors, at least one, into one message: the bytes of their payloads, one after the other.

        A codec that is faster on many small tensors at once overrides this, `decode_all` and `add_all_to_`, to the
        same bytes and values.

        Args:
            flats: float32, each of shape (spec.numel,); they are left as they are.
            specs: of the tensors, each with a payload of fixed size.
            generator_of: gives the generator of a tensor, by name.
        """
        payloads = [self.encode(flat, spec, generator_of(spec.name)) for flat, spec in zip(flats, specs, strict=True)]
        return to_bytes(payloads, flats[0].device)

    def decode_all(self, message: Tensor, specs: Sequence[GradSpec]) -> list[Tensor]:
        """Decode what `encode_all` gave: new tensors, each of shape (spec.numel,) and dtype spec.dtype.

        Raises:
            PayloadError: the message cannot have come from `encode_all`.
        """
        return [self.decode(payload) for payload in from_bytes(message, self, specs)]

    def add_all_to_(self, totals: Sequence[Tensor], message: Tensor, specs: Sequence[GradSpec], alpha: int = 1) -> None:
        """Add `alpha` (1 or -1) times what `decode_all` gives to `totals`, each of shape (spec.numel,), in place.

        Long tensors are added without a decoded copy of the whole.

        Raises:
            PayloadError: the message cannot have come from `encode_all`.
        """
        for total, payload in zip(totals, from_bytes(message, self, specs), strict=True):
            if alpha == 1:
                self.add_to_(total, payload)
            else:
                total.add_(self.decode(payload), alpha=alpha)

    def payload_nbytes(self, spec: GradSpec) -> int | None:
        """Return the bytes that `encode` will produce; None if they depend on the data."""
        total = 0
        for layout in self.layout(spec):
            if layout.nbytes is None:
                return None
            total += layout.nbytes
        return total
