"""Density warm-up: density_t = start (density / start)^(t / steps) for the first steps, then the codec's own.

    Lin et al. 2017, Deep Gradient Compression, arXiv:1712.01887.

Departs from the paper: the density falls at every step, not once an epoch.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from tightgrad.codecs.bits.choice import Choice, check_codec
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer, check_number
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec


@dataclass(frozen=True)
class DensityWarmup(Choice):
    """Starts a sparse codec at a higher density, which falls exponentially to the codec's own.

    Args:
        codec: one with a `density`: topk, random_k, sampled_threshold or stochastic_prune.
        start: density at step 0, in (0, 1].
        steps: after how many the codec's own density is reached, at least 1.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.DensityWarmup(tg.codecs.TopK(0.01), start=0.25, steps=100)
        >>> x = torch.ones(1000)
        >>> [round(codec.choose(GradSpec.of("weight", x, step=step)).density, 4) for step in (0, 50, 100)]
        [0.25, 0.05, 0.01]
    """

    codec: Codec
    start: float = 0.25
    steps: int = 1000

    card: ClassVar[MethodCard] = MethodCard(
        id="density_warmup",
        kind="codec",
        summary="a sparse codec whose density falls exponentially during the first steps",
        scope="tensor",
        contraction="that of the codec",
        reducer="gather",
        reference="Lin et al. 2017, arXiv:1712.01887",
        use_when="the density is 1 % or less: early gradients change fast, and residuals are stale when sent",
        avoid_when="the run is short compared with the warm-up",
    )

    def __post_init__(self) -> None:
        check_codec("codec", self.codec)
        check_number("start", self.start, above=0.0, high=1.0)
        check_integer("steps", self.steps, low=1)
        names = {field.name for field in dataclasses.fields(self.codec)}  # type: ignore[arg-type]
        if "density" not in names:
            raise ConfigError(f"codec={self.codec!r} has no density to warm up; use one such as TopK(0.001).")

    @property
    def choices(self) -> tuple[Codec, ...]:
        """Return the codec at the start and at the end; those in between are of the same kind."""
        return self._at(0), self.codec

    def choose(self, spec: GradSpec) -> Codec:
        """Return the codec with the density of `spec.step`."""
        return self._at(spec.step)

    def _at(self, step: int) -> Codec:
        if step >= self.steps:
            return self.codec
        end: float = self.codec.density  # type: ignore[attr-defined]
        density = self.start * (end / self.start) ** (step / self.steps)
        return dataclasses.replace(self.codec, density=density)  # type: ignore[type-var]
