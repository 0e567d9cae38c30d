"""What codecs share that choose another codec by what every rank knows of a tensor: its name, its shape, the step."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from tightgrad.codecs.pieces import common_multiple
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload, TensorLayout

_SCOPES = ("element", "block", "tensor", "matrix")


class Choice(Codec):
    """One of several codecs. Says of itself what is true of all of them."""

    @property
    @abstractmethod
    def choices(self) -> tuple[Codec, ...]:
        """All that may be chosen."""

    @abstractmethod
    def choose(self, spec: GradSpec) -> Codec:
        """The codec of this tensor: a function of its spec, and not of `spec.numel`, which a chunk changes."""

    @property
    def scope(self) -> str:
        """The widest."""
        return max((codec.scope for codec in self.choices), key=_SCOPES.index)

    @property
    def granularity(self) -> int:
        """A multiple of all."""
        return common_multiple(*(codec.granularity for codec in self.choices))

    @property
    def unbiased(self) -> bool:
        """If all are, or are exact."""
        return any(codec.unbiased for codec in self.choices) and all(
            codec.unbiased or codec.linear for codec in self.choices
        )

    @property
    def linear(self) -> bool:
        """If all are."""
        return all(codec.linear for codec in self.choices)

    @property
    def fixed_size(self) -> bool:
        """If all are."""
        return all(codec.fixed_size for codec in self.choices)

    @property
    def reducer(self) -> str:
        """The one they agree on; gather takes all codecs."""
        reducers = {codec.reducer for codec in self.choices if codec.reducer != "two_shot"}
        if len(reducers) > 1 or self.scope not in ("element", "block"):
            return next(iter(reducers)) if reducers == {"linear"} and self.linear else "gather"
        return next(iter(reducers), "two_shot")

    def contraction(self, numel: int) -> float:
        """The smallest."""
        return min(codec.contraction(numel) for codec in self.choices)

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """The chosen codec's."""
        return self.choose(spec).layout(spec)

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """By the chosen codec."""
        return self.choose(spec).encode(flat, spec, generator)

    def encode_together(self, flats: Sequence[Tensor], specs: Sequence[GradSpec]) -> Tensor | None:
        """By the chosen codec, where it is the same for all tensors."""
        chosen = self._same(specs)
        return None if chosen is None else chosen.encode_together(flats, specs)

    def entries_together(self, message: Tensor, specs: Sequence[GradSpec]) -> list[tuple[Tensor, Tensor]] | None:
        """By the chosen codec, where it is the same for all tensors."""
        chosen = self._same(specs)
        return None if chosen is None else chosen.entries_together(message, specs)

    def _same(self, specs: Sequence[GradSpec]) -> Codec | None:
        chosen = {self.choose(spec) for spec in specs}
        return chosen.pop() if len(chosen) == 1 else None

    def decode(self, payload: Payload) -> Tensor:
        """By the chosen codec."""
        return self.choose(payload.spec).decode(payload)

    def decode_to_(self, out: Tensor, payload: Payload) -> None:
        """By the chosen codec."""
        self.choose(payload.spec).decode_to_(out, payload)

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """By the chosen codec."""
        self.choose(payload.spec).add_to_(total, payload)


def check_codec(name: str, codec: object) -> None:
    """Raise `ConfigError` unless `codec` is one."""
    if not isinstance(codec, Codec):
        raise ConfigError(f"{name}={codec!r} must be a codec, such as Cast() or TopK(0.01).")
