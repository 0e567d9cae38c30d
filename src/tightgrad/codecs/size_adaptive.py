"""One codec for small tensors and those of one dimension, another for the rest.

Biases and norms are a small part of the bytes and sensitive to error, so they are better sent as they are.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

from tightgrad.codecs.bits.choice import Choice, check_codec
from tightgrad.codecs.cast import Cast
from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec


@dataclass(frozen=True)
class SizeAdaptive(Choice):
    """Gives large matrices one codec, and small or one-dimensional tensors another.

    Args:
        large: codec of tensors of at least `threshold` elements and two dimensions.
        small: codec of all others.
        threshold: number of elements from which on a tensor counts as large.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.types import GradSpec
        >>> codec = tg.codecs.SizeAdaptive(tg.codecs.TopK(0.01), threshold=1024)
        >>> shapes = {"weight": (64, 64), "bias": (64,)}
        >>> {name: codec.choose(GradSpec.of(name, torch.ones(shape))).card.id for name, shape in shapes.items()}
        {'weight': 'topk', 'bias': 'cast'}
    """

    large: Codec
    small: Codec = field(default_factory=lambda: Cast("float32"))
    threshold: int = 4096

    card: ClassVar[MethodCard] = MethodCard(
        id="size_adaptive",
        kind="codec",
        summary="one codec for small tensors and those of one dimension, another for the rest",
        scope="tensor",
        contraction="the smaller of both",
        reducer="gather",
        reference="TightGrad; Vogels et al. 2019, arXiv:1905.13727, and Lin et al. 2017 leave such tensors alone, too",
        use_when="gradients are sparsified, so that biases and norms are sent as they are",
        avoid_when="the model is one flat buffer",
    )

    def __post_init__(self) -> None:
        check_codec("large", self.large)
        check_codec("small", self.small)
        check_integer("threshold", self.threshold, low=0)

    @property
    def choices(self) -> tuple[Codec, ...]:
        """Return the codecs of large and of small tensors."""
        return self.small, self.large

    def choose(self, spec: GradSpec) -> Codec:
        """Return the codec for the shape of the whole gradient."""
        is_large = len(spec.shape) > 1 and math.prod(spec.shape) >= self.threshold
        return self.large if is_large else self.small
