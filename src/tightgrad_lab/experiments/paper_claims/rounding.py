"""QSGD with s = sqrt(n) levels of the whole vector's norm, and what fp16 loses."""

import math
from typing import Any

import torch
from torch import Tensor

NORM_BITS = 32


def row(vector: Tensor, draws: int, generator: torch.Generator) -> dict[str, Any]:
    """Return the second moment of the rounded vector over that of the vector, and its bits, means over draws."""
    size = vector.numel()
    moments, bits = [], []
    for _ in range(draws):
        levels = round_at_random(vector, math.sqrt(size), generator)
        # A level stands for level * norm / sqrt(n), so the norm cancels.
        moments.append(float(levels.double().square().sum()) / size)
        bits.append(code_bits(levels.abs()))
    return {"size": size, "second_moment": sum(moments) / draws, "bits": sum(bits) / draws}


def round_at_random(vector: Tensor, levels: float, generator: torch.Generator) -> Tensor:
    """Return integers l_i with the expectation levels * v_i / ||v||: float32, of the vector's shape."""
    exact = vector.double() * (levels / float(vector.double().norm()))
    low = exact.floor()
    up = torch.rand(vector.shape, generator=generator) < exact - low
    return (low + up).float()


def code_bits(levels: Tensor) -> int:
    """Return the bits of the paper's dense code: the norm, and for each element Elias omega of l + 1, a sign if not 0.

    Examples:
        >>> code_bits(torch.tensor([0.0, 1.0, 3.0]))
        44
    """
    counts = torch.bincount(levels.long().flatten())
    each = [omega_bits(level + 1) + (level > 0) for level in range(len(counts))]
    return NORM_BITS + sum(int(count) * bits for count, bits in zip(counts.tolist(), each, strict=True))


def omega_bits(value: int) -> int:
    """Return the length of a positive integer in Elias' omega code.

    Examples:
        >>> [omega_bits(value) for value in (1, 2, 3, 4, 8, 16)]
        [1, 3, 3, 6, 7, 11]
    """
    bits = 1
    while value > 1:
        bits += value.bit_length()
        value = value.bit_length() - 1
    return bits


def lost_in_fp16(gradient: Tensor, loss_scale: float) -> float:
    """Return the share of the elements that are not zero, and zero in fp16 after multiplying by the loss scale."""
    present = gradient[gradient != 0]
    return float(((present * loss_scale).half() == 0).double().mean())
