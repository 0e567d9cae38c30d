"""Field cases C8 and C9: adaptive clippers of others, re-stated from their sources, next to ours."""

import math

import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.clip.norm import total_norm
from tightgrad.core.types import State


class ReferenceZClip:
    """The statistics of github.com/bluorion-com/ZClip, zclip/zclip.py (commit 1acb085), on plain norms."""

    def __init__(self, warmup: int) -> None:
        self.buffer: list[float] = []
        self.warmup = warmup
        self.mean = self.var = math.nan

    def clipped(self, norm: float) -> float:
        if len(self.buffer) < self.warmup:
            self.buffer.append(norm)
            self.mean = sum(self.buffer) / len(self.buffer)
            self.var = sum((x - self.mean) ** 2 for x in self.buffer) / len(self.buffer)
            return norm
        std = self.var**0.5
        z = (norm - self.mean) / (std + 1e-6)
        bound = self.mean + 2.5 * std / (z / 2.5) if z > 2.5 else norm
        self.mean = 0.97 * self.mean + 0.03 * bound
        self.var = 0.97 * self.var + 0.03 * (bound - self.mean) ** 2
        return bound


def ours(clipper: tg.clip.ZClip, norm: float, state: State) -> tuple[float, State]:
    grads = {"weight": torch.tensor([norm])}
    clipped = clipper.clip_(grads, {}, total_norm, state)
    return float(grads["weight"]), clipped.state


def test_c8_one_nan_norm_ends_zclip(field_row) -> None:
    norms = [1.0, 1.1, 0.9, 1.05, 0.95] * 5
    peer, clipper, state = ReferenceZClip(warmup=10), tg.clip.ZClip(warmup_steps=10), {}
    for norm in [*norms, math.nan, *norms]:
        peer.clipped(norm)
        _, state = ours(clipper, norm, state)
    spike, _ = ours(clipper, 100.0, state)
    assert spike < 1.2
    assert all(bool(tensor.isfinite().all()) for values in state.values() for tensor in values.values())
    theirs = peer.clipped(100.0)
    field_row(
        "C8 spike of 100 after a NaN",
        "ZClip 1acb085, re-stated",
        f"{theirs:.2f}",
        f"{spike:.2f}",
        peer_is_wrong=theirs == 100.0,
    )


def composer_agc_(weight: Tensor, grad: Tensor, threshold: float) -> None:
    """github.com/mosaicml/composer, algorithms/gradient_clipping/gradient_clipping.py (commit 13dd358)."""
    dims = tuple(range(1, weight.ndim)) or 0
    weight_norm = torch.linalg.vector_norm(weight, dim=dims, keepdim=weight.ndim > 1)
    grad_norm = torch.linalg.vector_norm(grad, dim=dims, keepdim=weight.ndim > 1)
    grad.mul_((weight_norm * threshold).div_(grad_norm).nan_to_num_(nan=1.0).clamp_(max=1.0))


def learned(agc: str) -> float:
    layer = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    clipper = tg.clip.AGC(clip_factor=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        (layer(torch.ones(1, 3)) - 1).square().mean().backward()
        with torch.no_grad():
            if agc == "composer":
                composer_agc_(layer.weight, layer.weight.grad, 0.1)
            else:
                clipper.clip_({"weight": layer.weight.grad}, {"weight": layer.weight}, total_norm, {})
        optimizer.step()
    return float(layer.weight.detach().abs().max())


def test_c9_zero_initialised_weights_never_train(field_row) -> None:
    ours, theirs = learned("tightgrad"), learned("composer")
    assert ours > 1e-3
    name = "Composer 13dd358, re-stated"
    field_row("C9 zero-initialised weight", name, f"{theirs:.4f}", f"{ours:.4f}", peer_is_wrong=theirs == 0.0)
