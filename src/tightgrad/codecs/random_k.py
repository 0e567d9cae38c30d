"""Random entries: C(x) keeps k = round(density * n) entries, the same ones on every rank.

    Wangni et al. 2017, Gradient Sparsification, arXiv:1710.09854 (its baseline); Stich et al. 2018, arXiv:1809.07599.

Ranks draw the indices from a seed that they share, so only values are sent, and payloads can be summed without
decoding them: an all-reduce of k numbers.

Departs from the papers: one index from each of k strata of n / k entries, instead of any k. Each entry is kept as
often, and drawing takes time in k instead of n.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.codecs.bits.sparse import check_values
from tightgrad.codecs.cast import Cast
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_choice, check_number
from tightgrad.core.protocols import Codec
from tightgrad.core.rng import seeded
from tightgrad.core.types import GradSpec, Payload, TensorLayout
from tightgrad.core.wire import checked_tensors

SCALINGS = ("none", "unbiased")
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class RandomK(Codec):
    """Keeps random entries, the same on every rank, so that only their values are sent.

    Args:
        density: kept fraction of each tensor, in (0, 1]; at least one entry is kept.
        scaling: "none" for error feedback, "unbiased" multiplies what is kept by about 1 / density, for use without
            error feedback.
        values: codec of the kept values, of scope "element" or "block"; with Cast("float32") payloads are summed.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.RandomK(density=0.5)
        >>> x = torch.arange(1.0, 7.0)
        >>> payload = codec.encode(x, GradSpec.of("weight", x, seed=3), torch.Generator())
        >>> payload.nbytes, codec.decode(payload).tolist()
        (12, [1.0, 0.0, 3.0, 0.0, 0.0, 6.0])
    """

    density: float
    scaling: str = "none"
    values: Codec = field(default_factory=lambda: Cast("float32"))

    card: ClassVar[MethodCard] = MethodCard(
        id="random_k",
        kind="codec",
        summary="random entries, the same on every rank, so that only values are sent and summed",
        scope="tensor",
        linear=True,
        contraction="density, in expectation",
        reducer="linear",
        reference="Wangni et al. 2017, arXiv:1710.09854; Stich et al. 2018, arXiv:1809.07599",
        use_when="there are many ranks, since bytes do not grow with them and encoding costs almost nothing",
        avoid_when="a few entries carry most of the gradient; use topk instead",
    )

    def __post_init__(self) -> None:
        check_number("density", self.density, above=0.0, high=1.0)
        check_choice("scaling", self.scaling, SCALINGS)
        check_values(self.values)

    @property
    def unbiased(self) -> bool:
        """Tell whether kept values are scaled up and their codec is unbiased or exact."""
        return self.scaling == "unbiased" and (self.values.unbiased or self.values.linear)

    @property
    def linear(self) -> bool:
        """Tell whether the codec of the values is linear."""
        return self.values.linear

    @property
    def reducer(self) -> str:
        """Return the id of the usual reducer: linear, or gather if payloads cannot be summed."""
        return "linear" if self.linear else "gather"

    def count(self, numel: int) -> int:
        """Return how many of `numel` entries are kept."""
        return min(numel, max(1, round(self.density * numel)))

    def indices(self, spec: GradSpec) -> tuple[Tensor, Tensor]:
        """Draw distinct int64 indices; return them and the size of the stratum that each was drawn from."""
        count = self.count(spec.numel)
        edges = (
            torch.arange(count + 1, dtype=torch.int64, device="cpu")
            .mul_(spec.numel)
            .div_(max(1, count), rounding_mode="floor")
        )
        sizes = edges[1:] - edges[:-1]
        # Drawn on the CPU, to be the same on every device.
        generator = seeded(spec.seed, torch.device("cpu"))
        draw = torch.rand(count, dtype=torch.float64, generator=generator, device="cpu")
        # Strata begin anywhere, so that none of the entries is always in a smaller one.
        shift = int(torch.randint(max(1, spec.numel), (1,), generator=generator, device="cpu"))
        indices = (edges[:-1] + (draw * sizes).to(torch.int64) + shift).remainder_(max(1, spec.numel))
        return indices.to(spec.device), sizes.to(spec.device)

    def layout(self, spec: GradSpec) -> tuple[TensorLayout, ...]:
        """Return the layout of the payload of the values."""
        return self.values.layout(spec.part(self.count(spec.numel)))

    def encode(self, flat: Tensor, spec: GradSpec, generator: torch.Generator) -> Payload:
        """Pick the entries, scale them and encode their values."""
        indices, sizes = self.indices(spec)
        kept = flat[indices]
        if self.scaling == "unbiased":
            kept = (kept * sizes).clamp_(-_LARGEST, _LARGEST)
        payload = self.values.encode(kept, spec.part(indices.numel()), generator)
        return Payload(payload.tensors, spec)

    def decode(self, payload: Payload) -> Tensor:
        """Scatter the values into zeros."""
        checked_tensors(self, payload)
        total = torch.zeros(payload.spec.numel, dtype=payload.spec.dtype, device=payload.spec.device)
        self.add_to_(total, payload)
        return total

    def add_to_(self, total: Tensor, payload: Payload) -> None:
        """Add the kept entries to `total`, leaving the others untouched."""
        tensors = checked_tensors(self, payload)
        indices, _ = self.indices(payload.spec)
        total.index_add_(0, indices, self.values.decode(Payload(tensors, payload.spec.part(indices.numel()))))
