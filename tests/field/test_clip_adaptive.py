"""Field cases C8 and C9: adaptive clippers of others, next to ours."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.clip.norm import total_norm
from tightgrad.core.protocols import Clipper
from tightgrad.core.types import State

USUAL = [1.0, 1.1, 0.9, 1.05, 0.95] * 5
SPIKE = 100.0


def layer_with(norm: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.grad = torch.full_like(layer.weight, norm)
    return layer


def ours(clipper: Clipper, norms: list[float]) -> float:
    """The last norm, clipped."""
    state: State = {}
    for norm in norms:
        grads = {"weight": torch.tensor([norm])}
        state = clipper.clip_(grads, {}, total_norm, state).state
        assert all(not bool(tensor.isinf().any()) for values in state.values() for tensor in values.values())
    return float(grads["weight"])


def zclip_after(norms: list[float]):
    """Theirs, as installed."""
    peer = pytest.importorskip("zclip").ZClip(warmup_steps=10, max_grad_norm=None)
    for norm in norms:
        peer.step(layer_with(norm))
    return peer


def clipped_by(peer, norm: float) -> float:
    layer = layer_with(norm)
    peer.step(layer)
    return float(layer.weight.grad)


def test_c8_one_nan_norm_ends_zclip(field_row) -> None:
    norms = [*USUAL, math.nan, *USUAL]
    spike = ours(tg.clip.ZClip(warmup_steps=10), [*norms, SPIKE])
    assert spike < 1.2
    assert clipped_by(zclip_after(USUAL), SPIKE) < 1.2
    theirs = clipped_by(zclip_after(norms), SPIKE)
    case = "C8 spike of 100 after a NaN"
    field_row(case, "zclip", f"{theirs:.2f}", f"{spike:.2f}", peer_is_wrong=theirs == SPIKE)


def test_c8_zclip_forgets_when_it_is_resumed(field_row) -> None:
    model = nn.Linear(1, 1, bias=False)

    def pipeline() -> tg.GradientPipeline:
        plan = tg.Plan(clip=tg.clip.ZClip(warmup_steps=10))
        return tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.0), plan)

    def norm_after(pipe: tg.GradientPipeline, norms: list[float]) -> float:
        for window in pipe.windows([torch.tensor([[norm]]) for norm in norms]):
            for batch in window:
                pipe.backward(model(batch).sum())
            record = pipe.step()
        return record.grad_norm * record.clip_coef

    first = pipeline()
    norm_after(first, USUAL)
    resumed = pipeline()
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    spike = norm_after(resumed, [SPIKE])
    assert spike < 1.2
    peer = zclip_after(USUAL)
    saved = hasattr(peer, "state_dict")
    theirs = clipped_by(zclip_after([]), SPIKE)
    wrong = not saved and theirs == SPIKE
    field_row("C8 spike of 100 after a resume", "zclip", f"{theirs:.2f}", f"{spike:.2f}", peer_is_wrong=wrong)


def test_c8_one_nan_norm_spoils_autoclip(field_row) -> None:
    """The quantile of a history with NaN in it is NaN, and so is every gradient clipped to it."""
    norms = [*USUAL, math.nan, *USUAL]
    usual = ours(tg.clip.AutoClip(percentile=50.0), norms)
    assert 0.9 <= usual <= 1.0
    quantile_clip = pytest.importorskip("autoclip.torch").QuantileClip
    layer = layer_with(1.0)
    peer = quantile_clip(layer.parameters(), quantile=0.5, global_threshold=True)
    seen = []
    for norm in norms:
        layer.weight.grad = torch.full_like(layer.weight, norm)
        peer.step()
        seen.append(float(layer.weight.grad))
    assert 0.9 <= seen[len(USUAL) - 1] <= 1.0
    wrong = all(math.isnan(norm) for norm in seen[len(USUAL) :])
    field_row("C8 gradient after a NaN", "autoclip", f"{seen[-1]:.2f}", f"{usual:.2f}", peer_is_wrong=wrong)


def composer_agc_(weight: Tensor, grad: Tensor, threshold: float) -> None:
    """`_apply_agc` of github.com/mosaicml/composer, algorithms/gradient_clipping/gradient_clipping.py (commit 13dd358).

    Its package, mosaicml 0.32.1, wants a torch below 2.7.1 and cannot be installed beside this one. Compared with the
    function in its archive: bitwise the same on scalars, vectors, matrices and filters.
    """
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
    name = "mosaicml 0.32.1, re-stated"
    field_row("C9 zero-initialised weight", name, f"{theirs:.4f}", f"{ours:.4f}", peer_is_wrong=theirs == 0.0)
