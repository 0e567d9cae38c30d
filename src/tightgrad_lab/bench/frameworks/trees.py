"""Random trees of gradients and weights: shapes from scalars to a million numbers, one scale for each tree."""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_TENSORS = 12
LARGEST = 2**20
SPREAD = 1.0  # tensors of one tree differ in scale by up to e to this power, up or down


@dataclass(frozen=True, slots=True)
class GradientTree:
    """Gradients and the weights they belong to: float32, same shapes."""

    grads: list[Tensor]
    weights: list[Tensor]

    @property
    def numel(self) -> int:
        """Numbers in all gradients."""
        return sum(grad.numel() for grad in self.grads)

    @property
    def rms(self) -> float:
        """Root mean square of all gradients."""
        return math.sqrt(sum(float(grad.double().square().sum()) for grad in self.grads) / self.numel)

    def copy(self) -> list[Tensor]:
        """The gradients once more, to be clipped in place."""
        return [grad.clone() for grad in self.grads]

    def to(self, dtype: torch.dtype) -> "GradientTree":
        """Rounded."""
        return GradientTree([grad.to(dtype) for grad in self.grads], [weight.to(dtype) for weight in self.weights])


def random_tree(seed: int, scale: float, *, large: bool = False) -> GradientTree:
    """Draw a tree; normal numbers times about `scale`.

    Args:
        seed: of all that is random.
        scale: of gradients and weights.
        large: one tensor has a million numbers.
    """
    chooser = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = [_shape(chooser) for _ in range(chooser.randint(3, MOST_TENSORS))] + [()]
    if large:
        shapes.append((1024, LARGEST // 1024))

    def draw(shape: tuple[int, ...]) -> Tensor:
        drawn: Tensor = torch.randn(shape, generator=generator)
        return drawn * (scale * math.exp(chooser.uniform(-SPREAD, SPREAD)))

    return GradientTree([draw(shape) for shape in shapes], [draw(shape) for shape in shapes])


def _shape(chooser: random.Random) -> tuple[int, ...]:
    match chooser.randrange(4):
        case 0:
            return ()
        case 1:
            return (chooser.randint(2, 3000),)
        case 2:
            return (chooser.randint(2, 300), chooser.randint(2, 300))
        case _:
            return (chooser.randint(2, 5), chooser.randint(2, 5), chooser.randint(2, 40), chooser.randint(2, 40))
