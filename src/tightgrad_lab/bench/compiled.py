"""Codecs as they are next to the same code through `torch.compile`: bits and time, in one run."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tightgrad.codecs import FP8, Cast, Hadamard, IntBlock, Sign
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload
from tightgrad_lab.bench.clock import seconds
from tightgrad_lab.common.labels import label

NUMEL = 25_000_192  # whole blocks
CODECS: tuple[Codec, ...] = (
    IntBlock(8),
    IntBlock(4),
    IntBlock(2),
    FP8("e4m3"),
    Sign(),
    Cast("bfloat16"),
    Hadamard(IntBlock(4)),
)
"""Those that draw nothing."""


def run(
    codec: Codec, numel: int = NUMEL, repeats: int = 7, warm_up: int = 2, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Measure encoding and decoding of `numel` normal float32 numbers.

    Returns:
        A row for each. Ratios are speeds over that of a copy; `same_bits` says whether both give the same.
    """
    flat = torch.randn(numel, device=device, generator=torch.Generator(device).manual_seed(0))
    spec = GradSpec.of("x", flat, seed=1)
    generator = torch.Generator(device)

    def encode(values: Tensor) -> tuple[Tensor, ...]:
        return codec.encode(values, spec, generator).tensors

    def decode(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (codec.decode(Payload(tensors, spec)),)

    payload = encode(flat)
    return [
        {"what": f"{label(codec)} {name}", **_compared(function, given, flat, repeats, warm_up)}
        for name, function, given in (("encode", encode, flat), ("decode", decode, payload))
    ]


def _compared(
    function: Callable[[Any], tuple[Tensor, ...]], given: Any, flat: Tensor, repeats: int, warm_up: int
) -> dict[str, Any]:
    torch._dynamo.reset()
    fast = torch.compile(function)
    out = torch.empty_like(flat)
    first = seconds(lambda: fast(given), flat.device)
    same = all(map(torch.equal, fast(given), function(given)))
    rounds = [
        [seconds(work, flat.device) for work in (lambda: out.copy_(flat), lambda: function(given), lambda: fast(given))]
        for _ in range(warm_up + repeats)
    ]
    copies, eagers, fasts = zip(*rounds[warm_up:], strict=True)
    return {
        "eager_ratio_to_copy": _median_ratio(copies, eagers),
        "compiled_ratio_to_copy": _median_ratio(copies, fasts),
        "copy_seconds": statistics.median(copies),
        "first_call_seconds": first,
        "same_bits": same,
    }


def _median_ratio(times: tuple[float, ...], others: tuple[float, ...]) -> float:
    return statistics.median(one / other for one, other in zip(times, others, strict=True))
