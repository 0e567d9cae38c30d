"""`tightgrad bench codecs`: every codec beside a plain copy and beside other people's, on one tensor, in one run.

A ratio is a speed over that of copying the tensor to memory that is there already (`out.copy_(x)`): 1 is as fast as
memcpy. Encoding makes a new payload; decoding writes to memory that is there already. Each repeat times the copy and
then the subject, and the ratio is the median over repeats. On a GPU, its own clock is read, and its cache is cold.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tightgrad.codecs import (
    FP8,
    QSGD,
    Cast,
    ChunkedTopK,
    DCTTopK,
    Hadamard,
    IntBlock,
    Natural,
    RandomK,
    SampledThreshold,
    Sign,
    StochasticPrune,
    TernGrad,
    Threshold,
    TopK,
)
from tightgrad.core.protocols import Codec
from tightgrad.core.types import GradSpec, Payload
from tightgrad_lab.bench.clock import seconds
from tightgrad_lab.bench.codec_peers import DENSITY, Subject, codec_peers
from tightgrad_lab.common.labels import label

NUMEL = 25_000_000
CODECS: tuple[Codec, ...] = (
    Cast("bfloat16"),
    Cast("float16"),
    FP8("e4m3"),
    FP8("e5m2"),
    IntBlock(8),
    IntBlock(8, rounding="stochastic"),
    IntBlock(4),
    IntBlock(4, rounding="stochastic"),
    IntBlock(2),
    Hadamard(IntBlock(4)),
    QSGD(7),
    QSGD(1, coding="elias"),
    TernGrad(),
    Natural(),
    Sign(),
    TopK(DENSITY, values=IntBlock(4)),
    TopK(0.01),
    ChunkedTopK(values=IntBlock(4)),
    DCTTopK(),
    RandomK(0.01),
    Threshold(3.0),
    SampledThreshold(DENSITY),
    StochasticPrune(DENSITY),
)


def run(
    numel: int = NUMEL,
    repeats: int = 7,
    warm_up: int = 2,
    device: str = "cpu",
    seed: int = 0,
    codecs: tuple[Codec, ...] = CODECS,
    peers: bool = True,
    progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure every codec and, with `peers`, every peer on `numel` normal float32 numbers.

    Returns:
        {"rows": one for each subject; "missing": peers that are not installed or do not run here, with the reason}.
    """
    generator = torch.Generator(device).manual_seed(seed)
    flat = torch.randn(numel, device=device, generator=generator)
    out = torch.empty_like(flat)
    rows = []
    missing: dict[str, str] = {}
    for subject in [*_ours(codecs, numel, device), *(codec_peers(missing) if peers else ())]:
        progress(subject.name)
        try:
            rows.append(_row(subject, flat, out, repeats, warm_up))
        except Exception as error:
            if not subject.peer:
                raise
            missing[subject.name] = f"{type(error).__name__}: {error}"
    return {"rows": rows, "missing": missing, "numel": numel, "threads": torch.get_num_threads()}


def _row(subject: Subject, flat: Tensor, out: Tensor, repeats: int, warm_up: int) -> dict[str, Any]:
    encoded = subject.encode(flat)
    encode_ratio, encode_seconds, copy_seconds = _timed(lambda: subject.encode(flat), flat, out, repeats, warm_up)
    decode_ratio, decode_seconds, _ = _timed(lambda: subject.decode(out, encoded), flat, out, repeats, warm_up)
    subject.decode(out, encoded)
    nbytes = subject.nbytes(encoded)
    return {
        "codec": subject.name,
        "peer": subject.peer,
        "nbytes": nbytes,
        "encode_ratio_to_copy": encode_ratio,
        "decode_ratio_to_copy": decode_ratio,
        "compression_factor": flat.numel() * flat.element_size() / nbytes,
        "relative_error": float((out - flat).norm() / flat.norm()),
        "encode_seconds": encode_seconds,
        "decode_seconds": decode_seconds,
        "copy_seconds": copy_seconds,
    }


def _timed(
    work: Callable[[], object], flat: Tensor, out: Tensor, repeats: int, warm_up: int
) -> tuple[float, float, float]:
    """Median of copy time over the time of `work`, and the median times in seconds of `work` and of the copy."""
    pairs = []
    for _ in range(warm_up + repeats):
        copy = seconds(lambda: out.copy_(flat), flat.device)
        pairs.append((copy, seconds(work, flat.device)))
    ratios = [copy / own for copy, own in pairs[warm_up:]]
    copies, owns = zip(*pairs[warm_up:], strict=True)
    return statistics.median(ratios), statistics.median(owns), statistics.median(copies)


def _ours(codecs: tuple[Codec, ...], numel: int, device: str) -> Iterator[Subject]:
    spec = GradSpec("x", (numel,), numel, device=torch.device(device), seed=1)
    generator = torch.Generator(device).manual_seed(2)
    for codec in codecs:
        yield Subject(
            label(codec),
            peer=False,
            encode=lambda flat, codec=codec: codec.encode(flat, spec, generator),  # type: ignore[misc]
            decode=lambda out, payload, codec=codec: codec.decode_to_(out, payload),  # type: ignore[misc]
            nbytes=_payload_nbytes,
        )


def _payload_nbytes(payload: Payload) -> int:
    return payload.nbytes
