"""One real gradient before and after clipping, and every method on the same stream of gradients.

The gradients are those of a byte-level transformer after some steps of training, one for each of some batches of text.
Every method gets the bound at which it leaves, on average, the same share of the norm: then methods differ in what they
do, not in how much. Those that find their bound themselves run as they are.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.clip.norm import total_norm
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import Grads, State
from tightgrad_lab.bench.passes import MemoryTraffic
from tightgrad_lab.common import byte_model
from tightgrad_lab.common.labels import label
from tightgrad_lab.experiments.experiment import Experiment, Measured, Report
from tightgrad_lab.schema.clipping import ClipGeometryFigure, ClipGeometryRow, ClippedGradient

BINS = 41
REACH = 1.5
"""Entries further from 0 than the bound of value clipping times this are counted in the last bin."""
KEPT = 0.7
"""The share of the norm that is left, on average, where a bound can be chosen."""
BISECTIONS = 15
LOWEST, HIGHEST = 1e-5, 100.0
"""Every bound lies between these: a relative error of 2e-4 after that many bisections of the exponent."""
FEW = 2
"""Gradients on which bounds are chosen."""
SHARE_OF_TRAINING = 0.4

Make = Callable[[float], Clipper]
CHOSEN: dict[str, Make] = {
    "global_norm": lambda bound: tg.clip.GlobalNorm(bound),
    "value": lambda bound: tg.clip.Value(bound),
    "per_tensor_norm": lambda bound: tg.clip.PerTensorNorm(bound),
    "block_rms": lambda bound: tg.clip.BlockRMS(bound),
    "agc": lambda bound: tg.clip.AGC(bound),
    "chain": lambda bound: tg.clip.Chain((tg.clip.Value(float(f"{bound / 20:.3g}")), tg.clip.GlobalNorm(bound))),
    "by_name": lambda bound: tg.clip.ByName((("embedding.*", None),), default=tg.clip.GlobalNorm(bound)),
}
"""Methods with a bound, by the id of their card."""
ADAPTIVE: dict[str, Clipper] = {
    "autoclip": tg.clip.AutoClip(percentile=10.0),
    "zclip": tg.clip.ZClip(warmup_steps=5),
    "adagc": tg.clip.AdaGC(warmup_steps=5, max_norm=10.0),
}
"""Methods that find it, by the id of their card."""


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        steps: of training before the gradients are taken.
        batch_size: pieces of text of a step.
        gradients: batches whose gradients are clipped.
        repeats: of every timing.
        threads: that compute.
    """

    steps: int
    gradients: int
    repeats: int
    batch_size: int = 4
    threads: int = 1


class ClipGeometry(Experiment[Settings]):
    """Every way to clip."""

    def settings(self, *, full: bool) -> Settings:
        """After a few steps, or after some hundred."""
        return Settings(300, gradients=48, repeats=25) if full else Settings(25, gradients=12, repeats=7)

    def run(self, settings: Settings, report: Report) -> Measured:
        """Train, clip, compare."""
        torch.set_num_threads(settings.threads)
        model, stream = gradients(settings, report)
        parameters = dict(model.named_parameters())
        table = []
        for place, name in enumerate((*CHOSEN, *ADAPTIVE)):
            report(SHARE_OF_TRAINING + (1 - SHARE_OF_TRAINING) * place / len(CHOSEN | ADAPTIVE), name)
            clipper = chosen(CHOSEN[name], parameters, stream) if name in CHOSEN else ADAPTIVE[name]
            table.append(row(name, clipper, parameters, stream, settings))
        return Measured(picture(parameters, stream[0]), table)


def gradients(settings: Settings, report: Report) -> tuple[nn.Module, list[Grads]]:
    """The trained model, and its gradient of each of some batches."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = byte_model.ByteTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), byte_model.LEARNING_RATE)
    stream: list[Grads] = []
    for step in range(settings.steps + settings.gradients):
        optimizer.zero_grad()
        byte_model.loss(model, byte_model.batch(settings.batch_size, generator)).backward()
        if step < settings.steps:
            optimizer.step()
        else:
            stream.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        report(SHARE_OF_TRAINING * step / (settings.steps + settings.gradients), f"gradient {step}")
    return model, stream


def flat(grads: Mapping[str, Tensor]) -> Tensor:
    """All entries: float64, one dimension."""
    return torch.cat([grad.flatten() for grad in grads.values()]).double()


@torch.no_grad()
def clipped(clipper: Clipper, parameters: Mapping[str, nn.Parameter], stream: list[Grads]) -> list[Tensor]:
    """The gradients after clipping, one after the other, so that adaptive methods learn."""
    state: dict[str, Mapping[str, Tensor]] = {}
    found = []
    for grads in stream:
        own = {name: grad.clone() for name, grad in grads.items()}
        new: State = clipper.clip_(own, parameters, total_norm, state).state
        state.update({slot: {**state.get(slot, {}), **values} for slot, values in new.items()})
        found.append(flat(own))
    return found


@torch.no_grad()
def chosen(make: Make, parameters: Mapping[str, nn.Parameter], stream: list[Grads], kept: float = KEPT) -> Clipper:
    """The bound that leaves `kept` of the norm on average over the first FEW gradients, to four digits."""
    low, high = LOWEST, HIGHEST
    copies = [{name: grad.clone() for name, grad in grads.items()} for grads in stream[:FEW]]
    norms = [total_norm(list(grads.values())) for grads in copies]
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        shares = []
        for own, grads, norm in zip(copies, stream, norms, strict=False):
            _fill(own, grads)
            make(middle).clip_(own, parameters, total_norm, {})
            shares.append(float(total_norm(list(own.values())) / norm))
        low, high = (middle, high) if statistics.fmean(shares) < kept else (low, middle)
    return make(float(f"{high:.4g}"))


def row(
    name: str, clipper: Clipper, parameters: Mapping[str, nn.Parameter], stream: list[Grads], settings: Settings
) -> ClipGeometryRow:
    """What a method does to the gradients, and what that costs.

    Returns:
        "kept": norm after over norm before, "cosine" of after and before, of each gradient; "bias": sine of the angle
        between the mean gradient and the mean of the clipped ones; "memory_bytes_per_parameter" read and written;
        "time_ratio_to_torch": median over pairs, against `torch.nn.utils.clip_grad_norm_` at half the norm.
    """
    before = [flat(grads) for grads in stream]
    after = clipped(clipper, parameters, stream)
    mean_cosine = _cosine(torch.stack(before).mean(0), torch.stack(after).mean(0))
    nbytes, ratio = cost(clipper, parameters, stream[0], settings.repeats)
    return {
        "method": name,
        "settings": label(clipper),
        "scope": clipper.card.scope,
        "kept": [float(two.norm() / one.norm()) for one, two in zip(before, after, strict=True)],
        "cosine": [_cosine(one, two) for one, two in zip(before, after, strict=True)],
        "bias": max(0.0, 1 - mean_cosine**2) ** 0.5,
        "memory_bytes_per_parameter": nbytes / len(before[0]),
        "time_ratio_to_torch": ratio,
    }


def _cosine(one: Tensor, other: Tensor) -> float:
    return min(1.0, float(one @ other / (one.norm() * other.norm())))


@torch.no_grad()
def cost(clipper: Clipper, parameters: Mapping[str, nn.Parameter], grads: Grads, repeats: int) -> tuple[int, float]:
    """Bytes that one clipping reads and writes, and its time over that of torch's on the same gradients."""
    bound = float(total_norm(list(grads.values()))) / 2
    own = {name: grad.clone() for name, grad in grads.items()}
    state: State = {}
    for _ in range(max(2, getattr(clipper, "warmup_steps", 0) + 1)):
        _fill(own, grads)
        new = clipper.clip_(own, parameters, total_norm, state).state
        state = {**state, **new}
    holders = []
    for grad in own.values():
        holder = nn.Parameter(torch.empty_like(grad))
        holder.grad = grad
        holders.append(holder)
    ratios = []
    for repeat in range(repeats):
        seconds = {}
        for who in ("ours", "torch") if repeat % 2 else ("torch", "ours"):
            _fill(own, grads)
            start = time.perf_counter()
            if who == "ours":
                clipper.clip_(own, parameters, total_norm, state)
            else:
                nn.utils.clip_grad_norm_(holders, bound)
            seconds[who] = time.perf_counter() - start
        ratios.append(seconds["ours"] / seconds["torch"])
    _fill(own, grads)
    with MemoryTraffic() as traffic:
        clipper.clip_(own, parameters, total_norm, state)
    return traffic.nbytes, statistics.median(ratios)


def _fill(own: Grads, grads: Grads) -> None:
    for name, grad in grads.items():
        own[name].copy_(grad)


def picture(parameters: Mapping[str, nn.Parameter], grads: Grads) -> ClipGeometryFigure:
    """One gradient in the plane that it spans with its value-clipped self, and the histograms of entries.

    Both ways leave half of the norm.
    """
    before = flat(grads)
    norm = float(before.norm())
    by_norm = tg.clip.GlobalNorm(norm / 2)
    by_value = chosen(CHOSEN["value"], parameters, [grads], kept=0.5)
    assert isinstance(by_value, tg.clip.Value)
    rms = float(before.square().mean().sqrt())
    reach = math.ceil(REACH * by_value.max_value / rms)
    ways: dict[str, ClippedGradient] = {}
    for name, clipper in (("norm", by_norm), ("value", by_value)):
        (after,) = clipped(clipper, parameters, [grads])
        ways[name] = {
            "length": float(after.norm()) / norm,
            "cosine": _cosine(before, after),
            "changed": float((after != before).sum() / before.count_nonzero()),
            "histogram": histogram(after / rms, reach),
        }
    return {
        "num_parameters": len(before),
        "norm": norm,
        "max_norm": norm / 2,
        "max_value": by_value.max_value,
        "rms": rms,
        "reach": reach,
        "before": histogram(before / rms, reach),
        "ways": ways,
    }


def histogram(values: Tensor, reach: float) -> list[float]:
    """The share of `values` in each of BINS bins from -reach to reach; those beyond are in the first and the last."""
    counts = torch.histc(values.clamp(-reach, reach), BINS, -reach, reach)
    return [float(f"{share:.4g}") for share in (counts / values.numel()).tolist()]


EXPERIMENT = ClipGeometry()
