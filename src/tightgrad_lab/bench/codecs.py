"""`tightgrad bench codecs`: every codec beside a plain copy and beside other people's, on one tensor, in one run.

A ratio is a speed over that of copying the tensor to memory that is there already (`out.copy_(x)`): 1 is as fast as
memcpy. Encoding makes a new payload; decoding writes to memory that is there already. Each repeat times the copy and
then the subject, and the ratio is the median over repeats.
"""

import dataclasses
import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

NUMEL = 25_000_000
DENSITY = 0.001
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


@dataclass(frozen=True)
class Subject:
    """What is timed: `encode` gives anything, `decode` overwrites a tensor with it, `nbytes` is what it sends."""

    name: str
    peer: bool
    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor, Any], object]
    nbytes: Callable[[Any], int]


def run(
    numel: int = NUMEL,
    repeats: int = 7,
    warm_up: int = 2,
    device: str = "cpu",
    seed: int = 0,
    codecs: tuple[Codec, ...] = CODECS,
    progress: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Measure every codec and peer on `numel` normal float32 numbers.

    Returns:
        {"rows": one for each subject; "missing": peers that are not installed or do not run here, with the reason}.
    """
    generator = torch.Generator(device).manual_seed(seed)
    flat = torch.randn(numel, device=device, generator=generator)
    out = torch.empty_like(flat)
    rows = []
    missing: dict[str, str] = {}
    for subject in [*_ours(codecs, numel, device), *_peers(missing)]:
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
    encode_ratio, encode_seconds = _timed(lambda: subject.encode(flat), flat, out, repeats, warm_up)
    decode_ratio, decode_seconds = _timed(lambda: subject.decode(out, encoded), flat, out, repeats, warm_up)
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
    }


def _timed(work: Callable[[], object], flat: Tensor, out: Tensor, repeats: int, warm_up: int) -> tuple[float, float]:
    """Median of copy time over the time of `work`, and its median time in seconds."""
    pairs = []
    for _ in range(warm_up + repeats):
        copy = _seconds(lambda: out.copy_(flat), flat.device)
        pairs.append((copy, _seconds(work, flat.device)))
    ratios = [copy / own for copy, own in pairs[warm_up:]]
    return statistics.median(ratios), statistics.median(own for _, own in pairs[warm_up:])


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _ours(codecs: tuple[Codec, ...], numel: int, device: str) -> Iterator[Subject]:
    spec = GradSpec("x", (numel,), numel, device=torch.device(device), seed=1)
    generator = torch.Generator(device).manual_seed(2)
    for codec in codecs:
        yield Subject(
            _name(codec),
            peer=False,
            encode=lambda flat, codec=codec: codec.encode(flat, spec, generator),  # type: ignore[misc]
            decode=lambda out, payload, codec=codec: codec.decode_to_(out, payload),  # type: ignore[misc]
            nbytes=_payload_nbytes,
        )


def _name(codec: Codec) -> str:
    """The call that makes it, without settings left at their defaults."""
    parts = []
    for field in dataclasses.fields(codec):  # type: ignore[arg-type]
        value = getattr(codec, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value != default:
            parts.append(f"{field.name}={_name(value) if isinstance(value, Codec) else repr(value)}")
    return f"{type(codec).__name__}({', '.join(parts)})"


def _payload_nbytes(payload: Payload) -> int:
    return payload.nbytes


def _peers(missing: dict[str, str]) -> Iterator[Subject]:
    yield Subject("memcpy", True, lambda flat: flat.clone(), lambda out, flat: out.copy_(flat), _tensor_nbytes)
    yield Subject("torch fp16 hook", True, lambda flat: flat.half(), lambda out, half: out.copy_(half), _tensor_nbytes)
    yield Subject(
        f"torch.topk({DENSITY})", True, _torch_topk, _torch_scatter, lambda kept: sum(map(_tensor_nbytes, kept))
    )
    yield from _torch_quantization(missing)
    yield from _hivemind(missing)


def _tensor_nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _torch_topk(flat: Tensor) -> tuple[Tensor, Tensor]:
    indices = flat.abs().topk(max(1, round(DENSITY * flat.numel())), sorted=False).indices
    return flat[indices], indices


def _torch_scatter(out: Tensor, kept: tuple[Tensor, Tensor]) -> None:
    values, indices = kept
    out.zero_()[indices] = values


def _torch_quantization(missing: dict[str, str]) -> Iterator[Subject]:
    """What torch's quantization_pertensor_hook and quantization_perchannel_hook do to a bucket, without the network."""
    try:
        hooks = importlib.import_module("torch.distributed.algorithms.ddp_comm_hooks.quantization_hooks")
        observers = importlib.import_module("torch.ao.quantization")
    except ImportError as error:
        missing["torch quantization hooks"] = str(error)
        return

    def observe(kind: str, values: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            observer = getattr(observers, kind)(**settings).to(values.device)
            observer(values)
            scale, zero_point = observer.calculate_qparams()
        return scale, zero_point

    def encode(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale, zero_point = observe("MinMaxObserver", flat)
        return hooks._quantize_per_tensor_backend(flat, scale, zero_point), scale, zero_point

    def decode(out: Tensor, message: tuple[Tensor, Tensor, Tensor]) -> None:
        out.copy_(hooks._dequantize_per_tensor_backend(*message))

    yield Subject("torch quantization_pertensor_hook", True, encode, decode, lambda message: _sum_nbytes(message))

    def encode_channels(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.nn.functional.pad(flat, (0, -flat.numel() % 512)).view(-1, 512)
        scale, zero_point = observe("PerChannelMinMaxObserver", rows)
        return hooks._quantize_per_channel_backend(rows, scale, zero_point), scale, zero_point

    def decode_channels(out: Tensor, message: tuple[Tensor, Tensor, Tensor]) -> None:
        rows, scale, zero_point = message
        out.copy_(hooks._dequantize_per_channel_backend(rows, scale, zero_point).view(-1)[: out.numel()])

    yield Subject("torch quantization_perchannel_hook", True, encode_channels, decode_channels, _sum_nbytes)


def _sum_nbytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(map(_tensor_nbytes, tensors))


def _hivemind(missing: dict[str, str]) -> Iterator[Subject]:
    try:
        compression = importlib.import_module("hivemind.compression")
    except ImportError as error:
        missing["hivemind"] = str(error)
        return
    for kind in (
        "Float16Compression",
        "ScaledFloat16Compression",
        "Uniform8BitQuantization",
        "Quantile8BitQuantization",
    ):
        codec = getattr(compression, kind)()
        yield Subject(
            f"hivemind {kind}",
            True,
            encode=lambda flat, codec=codec: codec.compress(flat),  # type: ignore[misc]
            decode=lambda out, message, codec=codec: out.copy_(codec.extract(message)),  # type: ignore[misc]
            nbytes=lambda message: int(message.ByteSize()),
        )
