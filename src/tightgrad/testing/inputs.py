"""Tensors that codecs must live with."""

import torch
from torch import Tensor

SMALLEST = 2.0**-149
# The float32 numbers above may be rounded to inf by a codec: bfloat16 ends at 3.39e38, a scale is rounded once.
LARGEST = 3.3e38


def normal(numel: int, seed: int = 0) -> Tensor:
    """Draw standard normal numbers."""
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def _spike(numel: int, value: float) -> Tensor:
    tensor = normal(numel)
    tensor[numel // 3] = value
    return tensor


INPUTS: dict[str, Tensor] = {
    "empty": torch.empty(0),
    "one": torch.tensor([-0.75]),
    "one zero": torch.zeros(1),
    "seven": normal(7),
    "odd": normal(1_001),
    "one block": normal(256),
    "zeros": torch.zeros(300),
    "negative zeros": -torch.zeros(300),
    "equal": torch.full((129,), -3.0),
    "ties": torch.tensor([1.0, -1.0] * 50),
    "one huge": _spike(777, 1e30),
    "one largest": _spike(33, LARGEST),
    "tiny": normal(513) * 1e-30,
    "denormal": torch.full((65,), SMALLEST),
    "wide range": torch.logspace(-30, 30, 255) * torch.tensor([1.0, -1.0, 1.0]).repeat(85),
}
