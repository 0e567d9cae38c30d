"""One real gradient through every codec: what arrives, what is left behind, and what it costs.

The gradient is that of a byte-level transformer after some steps of training. The figure shows that of one weight
matrix; the table encodes the whole gradient as one tensor, as it lies in a bucket.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tightgrad import collectives
from tightgrad.codecs import Cast, IntBlock, Sign, TernGrad, Threshold, TopK
from tightgrad.core.clock import StageClock
from tightgrad.core.protocols import Codec, Collective, ReduceContext
from tightgrad.core.rng import StepRng
from tightgrad.core.types import Grads, GradSpec
from tightgrad.reducers import PowerSGD
from tightgrad_lab.bench.codecs import CODECS
from tightgrad_lab.common import byte_model
from tightgrad_lab.common.labels import label
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.schema.compression import CodecFamily, CodecGalleryFigure, CodecRow
from tightgrad_lab.training.files import finite

LAYER = "encoder.layers.2.linear1.weight"
REACH = 4.0
"""Values further than this many root mean squares from 0 are counted in the last bin."""
BINS = 49
FAMILIES: dict[str, Codec | None] = {
    "cast": Cast("bfloat16"),
    "quantise": IntBlock(4),
    "ternary": TernGrad(),
    "sign": Sign(),
    "sparsify": TopK(0.01),
    "low_rank": None,
}
"""A codec of each family; None is the reducer PowerSGD, whose factors are not a codec's."""
APPROXIMATION_RANK = 4
FLOAT_NBYTES = 4


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        steps: of training before the gradient is taken.
        batch_size: pieces of text of one step.
        repeats: of every timing.
        draws: encodings that are averaged, to see whether errors cancel.
        threads: that compute.
        strip: neighbouring values that the figure shows one by one.
    """

    steps: int
    batch_size: int = 8
    repeats: int = 5
    draws: int = 16
    threads: int = 1
    strip: int = 64


class CodecGallery(Experiment[Settings]):
    """One gradient, every codec."""

    def settings(self, *, full: bool) -> Settings:
        """After a few steps, or after some hundred."""
        return Settings(300, repeats=15) if full else Settings(30)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Train, encode, decode."""
        torch.set_num_threads(settings.threads)
        loss, grads = gradient(settings, report)
        whole = torch.cat([grad.flatten() for grad in grads.values()])
        table = [copy_row(whole, settings)]
        codecs = fitting(CODECS, whole)
        for place, codec in enumerate(codecs):
            report(0.5 + 0.5 * place / len(codecs), label(codec))
            table.append(codec_row(codec, whole, settings))
        table.append(low_rank_row(grads))
        layer = grads[LAYER]
        shown = stretch(layer, settings.strip)
        figure: CodecGalleryFigure = {
            "layer": LAYER,
            "shape": list(layer.shape),
            "num_parameters": whole.numel(),
            "loss": loss,
            "reach": REACH,
            "before": histogram(layer, layer),
            "strip": in_rms(layer.flatten()[shown], layer),
            "families": [family(name, codec, grads, shown) for name, codec in FAMILIES.items()],
        }
        return Measured(figure, table)


def gradient(settings: Settings, report: Report) -> tuple[float, Grads]:
    """Loss and gradient, by parameter name, of one batch after `settings.steps` steps."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = byte_model.ByteTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), byte_model.LEARNING_RATE)
    for step in range(settings.steps):
        optimizer.zero_grad()
        byte_model.loss(model, byte_model.batch(settings.batch_size, generator)).backward()
        optimizer.step()
        report(0.5 * step / settings.steps, f"step {step}")
    optimizer.zero_grad()
    loss = byte_model.loss(model, byte_model.batch(settings.batch_size, generator))
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


def fitting(codecs: Sequence[Codec], flat: Tensor) -> list[Codec]:
    """The codecs, but those that cut at a fixed size cut at three root mean squares of this gradient."""
    bound = float(f"{3 * float(flat.square().mean().sqrt()):.2g}")
    return [replace(codec, threshold=bound) if isinstance(codec, Threshold) else codec for codec in codecs]


def histogram(values: Tensor, scale: Tensor) -> list[float]:
    """The share of `values` in each of BINS bins, in units of the root mean square of `scale`."""
    rms = float(scale.square().mean().sqrt())
    counts = torch.histc((values.flatten() / rms).clamp(-REACH, REACH), BINS, -REACH, REACH)
    return [float(f"{share:.4g}") for share in (counts / values.numel()).tolist()]


def stretch(layer: Tensor, count: int) -> slice:
    """The first `count` neighbours of which the sparsifier keeps at least three."""
    flat = layer.flatten()
    sparse = TopK(0.01)
    kept = sparse.decode(sparse.encode(flat, GradSpec.of(LAYER, flat), torch.Generator())).flatten() != 0
    rows = kept[: len(kept) // count * count].view(-1, count).sum(1)
    first = int((rows >= 3).float().argmax())
    return slice(first * count, (first + 1) * count)


def in_rms(values: Tensor, scale: Tensor) -> list[float]:
    """Values in units of the root mean square of `scale`."""
    rms = float(scale.square().mean().sqrt())
    return [float(f"{value:.4g}") for value in (values / rms).tolist()]


def family(name: str, codec: Codec | None, grads: Grads, shown: slice) -> CodecFamily:
    """What arrives of the layer, and what is left behind."""
    layer = grads[LAYER]
    if codec is None:
        delivered, nbytes = low_rank({LAYER: layer})
        decoded, method = delivered[LAYER], label(PowerSGD(APPROXIMATION_RANK))
    else:
        spec = GradSpec.of(LAYER, layer)
        payload = codec.encode(layer.flatten(), spec, torch.Generator().manual_seed(0))
        decoded, nbytes, method = codec.decode(payload).view_as(layer), payload.nbytes, label(codec)
    return {
        "family": name,
        "method": method,
        "strip": in_rms(decoded.flatten()[shown], layer),
        "nbytes": nbytes,
        "compression_factor": layer.numel() * FLOAT_NBYTES / nbytes,
        "relative_error": _relative_error(decoded, layer),
        "after": histogram(decoded, layer),
        "residual": histogram(layer - decoded, layer),
        "num_values": len(decoded.unique()),
    }


def codec_row(codec: Codec, flat: Tensor, settings: Settings) -> CodecRow:
    """Everything about one codec on one tensor."""
    spec = GradSpec("gradient", tuple(flat.shape), flat.numel(), seed=1)
    generator = torch.Generator().manual_seed(0)
    payload = codec.encode(flat, spec, generator)
    out = torch.empty_like(flat)
    codec.decode_to_(out, payload)
    error = _relative_error(out, flat)
    return {
        "codec": label(codec),
        "id": codec.card.id,
        "nbytes": payload.nbytes,
        "compression_factor": flat.numel() * FLOAT_NBYTES / payload.nbytes,
        "relative_error": error,
        "cosine": finite(_cosine(out, flat)),
        "unbiased": codec.unbiased,
        "averaged_error": averaged_error(codec, flat, spec, settings.draws),
        "encode_bytes_per_second": _speed(flat, lambda: codec.encode(flat, spec, generator), settings.repeats),
        "decode_bytes_per_second": _speed(flat, lambda: codec.decode_to_(out, payload), settings.repeats),
    }


def averaged_error(codec: Codec, flat: Tensor, spec: GradSpec, draws: int) -> float:
    """The relative error of the mean of several encodings: it falls with the root of their number if unbiased."""
    total = torch.zeros_like(flat)
    for draw in range(draws):
        drawn = GradSpec(spec.name, spec.shape, spec.numel, seed=draw)
        total += codec.decode(codec.encode(flat, drawn, torch.Generator().manual_seed(draw)))
    return _relative_error(total / draws, flat)


def copy_row(flat: Tensor, settings: Settings) -> CodecRow:
    """A plain copy, to know what the machine can do."""
    out = torch.empty_like(flat)
    speed = _speed(flat, lambda: out.copy_(flat), settings.repeats)
    return {
        "codec": "copy",
        "id": "copy",
        "nbytes": flat.numel() * FLOAT_NBYTES,
        "compression_factor": 1.0,
        "relative_error": 0.0,
        "cosine": 1.0,
        "unbiased": True,
        "averaged_error": 0.0,
        "encode_bytes_per_second": speed,
        "decode_bytes_per_second": speed,
    }


def low_rank(grads: Grads) -> tuple[Grads, int]:
    """What PowerSGD delivers of the same gradients of two ranks, and the bytes that one of them sent."""

    def body(collective: Collective) -> tuple[Grads, int]:
        context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        reduced = PowerSGD(APPROXIMATION_RANK).reduce(grads, None, {}, context)
        return {name: total / 2 for name, total in reduced.total.items()}, collective.traffic.nbytes

    delivered, nbytes = collectives.run_threaded(2, body)[0]
    return delivered, nbytes


def low_rank_row(grads: Grads) -> CodecRow:
    """PowerSGD on all matrices; its rounds of communication stand between encode and decode, so these have no speed."""
    delivered, nbytes = low_rank(grads)
    whole = torch.cat([grad.flatten() for grad in grads.values()])
    decoded = torch.cat([delivered[name].flatten() for name in grads])
    error = _relative_error(decoded, whole)
    return {
        "codec": label(PowerSGD(APPROXIMATION_RANK)),
        "id": PowerSGD.card.id,
        "nbytes": nbytes,
        "compression_factor": whole.numel() * FLOAT_NBYTES / nbytes,
        "relative_error": error,
        "cosine": _cosine(decoded, whole),
        "unbiased": PowerSGD.card.unbiased,
        "averaged_error": None,
        "encode_bytes_per_second": None,
        "decode_bytes_per_second": None,
    }


def _relative_error(decoded: Tensor, exact: Tensor) -> float:
    return float((decoded - exact).norm() / exact.norm())


def _cosine(decoded: Tensor, exact: Tensor) -> float:
    decoded, exact = decoded.double(), exact.double()
    return float(torch.dot(decoded, exact) / (decoded.norm() * exact.norm()))


def _speed(flat: Tensor, work: Callable[[], object], repeats: int) -> float:
    """Bytes of the gradient, not of the payload, a second."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return flat.numel() * FLOAT_NBYTES / statistics.median(seconds)


EXPERIMENT = CodecGallery()
