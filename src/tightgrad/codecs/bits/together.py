"""Base class of codecs that handle many small tensors faster at once than one after the other."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tightgrad.codecs.bits.pieces import are_short
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec


class Together(Codec):
    """Encodes and decodes several short tensors in as many torch operations as one tensor takes."""

    def goes_together(self, specs: Sequence[GradSpec]) -> bool:
        """Tell whether these tensors are faster together than one by one."""
        return are_short(specs)

    @abstractmethod
    def encode_together(self, flats: Sequence[Tensor], specs: Sequence[GradSpec]) -> Tensor:
        """Encode tensors that go together, as `encode_all` does."""

    @abstractmethod
    def decode_together(self, message: Tensor, specs: Sequence[GradSpec]) -> list[Tensor]:
        """Decode tensors that go together, as `decode_all` does."""

    def add_together_(self, totals: Sequence[Tensor], message: Tensor, specs: Sequence[GradSpec], alpha: int) -> None:
        """Add tensors that go together, as `add_all_to_` does."""
        torch._foreach_add_(list(totals), self.decode_together(message, specs), alpha=alpha)

    def encode_all(
        self, flats: Sequence[Tensor], specs: Sequence[GradSpec], generator_of: Callable[[str], torch.Generator]
    ) -> Tensor:
        """Encode together what goes together, else one by one."""
        if self.goes_together(specs):
            return self.encode_together(flats, specs)
        return super().encode_all(flats, specs, generator_of)

    def decode_all(self, message: Tensor, specs: Sequence[GradSpec]) -> list[Tensor]:
        """Decode together what goes together, else one by one."""
        return self.decode_together(message, specs) if self.goes_together(specs) else super().decode_all(message, specs)

    def add_all_to_(self, totals: Sequence[Tensor], message: Tensor, specs: Sequence[GradSpec], alpha: int = 1) -> None:
        """Add together what goes together, else one by one."""
        add_ = self.add_together_ if self.goes_together(specs) else super().add_all_to_
        add_(totals, message, specs, alpha)
