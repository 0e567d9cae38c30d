"""Other people's codecs, as far as they are installed: torch's hooks and topk, hivemind's, bitsandbytes'."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DENSITY = 0.001


@dataclass(frozen=True)
class Subject:
    """What is timed: `encode` gives anything, `decode` overwrites a tensor with it, `nbytes` is what it sends."""

    name: str
    peer: bool
    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor, Any], object]
    nbytes: Callable[[Any], int]


def codec_peers(missing: dict[str, str]) -> Iterator[Subject]:
    """A copy, what torch has, and what is installed of others; `missing` gets the reason for each that is not."""
    yield Subject("memcpy", True, lambda flat: flat.clone(), lambda out, flat: out.copy_(flat), _tensor_nbytes)
    yield Subject("torch fp16 hook", True, lambda flat: flat.half(), lambda out, half: out.copy_(half), _tensor_nbytes)
    yield Subject(
        f"torch.topk({DENSITY})", True, _torch_topk, _torch_scatter, lambda kept: sum(map(_tensor_nbytes, kept))
    )
    yield from _torch_quantization(missing)
    yield from _bitsandbytes(missing)
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
        info = compression.CompressionInfo
    except ImportError as error:
        missing["hivemind"] = f"{error}; pip install hivemind"
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
            encode=lambda flat, codec=codec: codec.compress(flat, info.from_tensor(flat)),  # type: ignore[misc]
            decode=lambda out, message, codec=codec: out.copy_(codec.extract(message)),  # type: ignore[misc]
            nbytes=lambda message: int(message.ByteSize()),
        )


def _bitsandbytes(missing: dict[str, str]) -> Iterator[Subject]:
    """The block-wise codecs of Dettmers et al. 2021 and 2023."""
    try:
        functional = importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        missing["bitsandbytes"] = f"{error}; pip install bitsandbytes"
        return

    def nbytes(message: tuple[Tensor, Any]) -> int:
        codes, state = message
        return _tensor_nbytes(codes) + _tensor_nbytes(state.absmax)

    yield Subject(
        "bitsandbytes quantize_blockwise",
        True,
        encode=lambda flat: functional.quantize_blockwise(flat, blocksize=256),
        decode=lambda out, message: out.copy_(functional.dequantize_blockwise(*message)),
        nbytes=nbytes,
    )
    yield Subject(
        "bitsandbytes quantize_4bit",
        True,
        encode=lambda flat: functional.quantize_4bit(flat, blocksize=256, quant_type="nf4"),
        decode=lambda out, message: out.copy_(functional.dequantize_4bit(*message).view(-1)),
        nbytes=nbytes,
    )
