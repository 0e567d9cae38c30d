"""Base class of codecs that choose another codec by a tensor's name or shape, or by the step."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import check_message, fixed_nbytes

_SCOPES = ("element", "block", "tensor", "matrix")


class Choice(Codec):
    """Hands each tensor to one of several codecs. Its properties hold for every codec that may be chosen."""

    @property
    @abstractmethod
    def choices(self) -> tuple[Codec, ...]:
        """Return every codec that may be chosen."""

    @abstractmethod
    def choose(self, spec: GradSpec) -> Codec:
        """Return the codec of a tensor: a function of its spec, but not of `spec.numel`, which chunks change."""

    @property
    def scope(self) -> str:
        """Return the widest scope of all choices."""
        return max((codec.scope for codec in self.choices), key=_SCOPES.index)

    @property
    def granularity(self) -> int:
        """Return the least common multiple of the granularities of all choices."""
        return math.lcm(*(codec.granularity for codec in self.choices))

    @property
    def unbiased(self) -> bool:
        """Tell whether every choice is unbiased or exact."""
        return any(codec.unbiased for codec in self.choices) and all(
            codec.unbiased or codec.linear for codec in self.choices
        )

    @property
    def linear(self) -> bool:
        """Tell whether every choice is linear."""
        return all(codec.linear for codec in self.choices)

    @property
    def fixed_size(self) -> bool:
        """Tell whether every choice has payloads of a known size."""
        return all(codec.fixed_size for codec in self.choices)

    @property
    def reducer(self) -> str:
        """Return the reducer that the choices agree on, else gather, which takes all codecs."""
        reducers = {codec.reducer for codec in self.choices if codec.reducer != "two_shot"}
        if len(reducers) > 1 or self.scope not in ("element", "block"):
            return next(iter(reducers)) if reducers == {"linear"} and self.linear else "gather"
        return next(iter(reducers), "two_shot")

    def contraction(self, numel: int) -> float:
        """Return the smallest contraction of all choices."""
        return min(codec.contraction(numel) for codec in self.choices)

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout of the chosen codec's payload."""
        return self.choose(spec).layout(spec)

    def payload_nbytes(self, spec: GradSpec) -> int | None:
        """Return the bytes of the chosen codec's payload; None if they depend on the data."""
        return self.choose(spec).payload_nbytes(spec)

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Encode with the chosen codec."""
        return self.choose(spec).encode(flat, spec, generator)

    def encode_all(
        self, flats: Sequence[Tensor], specs: Sequence[GradSpec], generator_of: Callable[[str], torch.Generator]
    ) -> Tensor:
        """Encode all tensors of each chosen codec with it."""
        payloads: dict[int, Tensor] = {}
        for codec, places in self._places(specs).items():
            message = codec.encode_all([flats[i] for i in places], [specs[i] for i in places], generator_of)
            payloads |= zip(places, message.split([fixed_nbytes(codec, specs[i]) for i in places]), strict=True)
        return torch.cat([payloads[i] for i in range(len(specs))])

    def decode_all(self, message: Tensor, specs: Sequence[GradSpec]) -> list[Tensor]:
        """Decode all tensors of each chosen codec with it."""
        decoded: dict[int, Tensor] = {}
        for codec, places, part in self._parts(message, specs):
            decoded |= zip(places, codec.decode_all(part, [specs[i] for i in places]), strict=True)
        return [decoded[i] for i in range(len(specs))]

    def add_all_to_(self, totals: Sequence[Tensor], message: Tensor, specs: Sequence[GradSpec], alpha: int = 1) -> None:
        """Add all tensors of each chosen codec with it."""
        for codec, places, part in self._parts(message, specs):
            codec.add_all_to_([totals[i] for i in places], part, [specs[i] for i in places], alpha)

    def _parts(self, message: Tensor, specs: Sequence[GradSpec]) -> Iterator[tuple[Codec, list[int], Tensor]]:
        """Each chosen codec, which tensors are its own, and their payloads."""
        nbytes = [fixed_nbytes(self, spec) for spec in specs]
        check_message(self, message, sum(nbytes))
        payloads = message.split(nbytes)
        for codec, places in self._places(specs).items():
            yield codec, places, torch.cat([payloads[i] for i in places])

    def _places(self, specs: Sequence[GradSpec]) -> dict[Codec, list[int]]:
        places: dict[Codec, list[int]] = {}
        for place, spec in enumerate(specs):
            places.setdefault(self.choose(spec), []).append(place)
        return places

    def decode(self, payload: Payload) -> Tensor:
        """Decode with the chosen codec."""
        return self.choose(payload.spec).decode(payload)

    def decode_to_(self, out: Tensor, payload: Payload) -> None:
        """Decode with the chosen codec, into `out`."""
        self.choose(payload.spec).decode_to_(out, payload)

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Add the decoded payload with the chosen codec."""
        self.choose(payload.spec).add_to_(total, payload)


def check_codec(name: str, codec: object) -> None:
    """Raise `ConfigError` unless `codec` is a codec."""
    if not isinstance(codec, Codec):
        raise ConfigError(f"{name}={codec!r} must be a codec, such as Cast() or TopK(0.01).")
