"""What a method does depends on the gradient's dtype, never on the dtype that torch gives to new tensors."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tightgrad as tg
from conformance.cases import CLIPPERS, CODECS, FEEDBACKS, REDUCERS
from tightgrad.clip.norm import CachedNorm
from tightgrad.core.types import Grads, Reduced
from tightgrad.testing.checks import context_of
from tightgrad.testing.clipper_checks import gradients as clipper_gradients

SIZES = {"matrix": (40, 30), "bias": (40,), "scalar": (), "empty": (0, 3)}
DEFAULTS = (torch.bfloat16, torch.float64)


@pytest.fixture(autouse=True)
def _default_dtype_again() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def _gradients(rank: int) -> Grads:
    generator = torch.Generator().manual_seed(rank)
    return {name: torch.randn(size, generator=generator, dtype=torch.float32) for name, size in SIZES.items()}


def _reduced(default: torch.dtype, reducer: Any, codec: Any) -> list[Grads]:
    def body(collective: Any) -> Reduced:
        with torch.no_grad():
            return reducer.reduce(_gradients(collective.rank), codec, {}, context_of(collective))

    torch.set_default_dtype(default)
    return [part for reduced in tg.collectives.run_threaded(2, body) for part in (reduced.total, reduced.transmitted)]


def _assert_same(found: Grads, expected: Grads) -> None:
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


PAIRS = [(tg.Compress(codec).resolved().reducer, codec) for codec in CODECS]
PAIRS += [
    (case.reducer, codec)
    for case in REDUCERS
    for codec in (None, tg.codecs.IntBlock(8), tg.codecs.TopK(0.1), tg.codecs.Sign(32))
    if case.reducer.refuses(codec) is None
]


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]!r:.40}-{pair[1]!r:.60}")
def test_a_sum_over_ranks_is_the_same(pair: Any, default: torch.dtype) -> None:
    for found, expected in zip(_reduced(default, *pair), _reduced(torch.float32, *pair), strict=True):
        _assert_same(found, expected)


def _clipped(default: torch.dtype, clipper: Any) -> Grads:
    torch.set_default_dtype(torch.float32)
    grads = clipper_gradients(10.0)
    params = {name: torch.nn.Parameter(grad.clone()) for name, grad in grads.items()}
    torch.set_default_dtype(default)
    with torch.no_grad():
        clipped = clipper.clip_(grads, params, CachedNorm(), {})
    return {**grads, "total_norm": clipped.total_norm, "clip_coef": clipped.clip_coef}


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
@pytest.mark.parametrize("case", CLIPPERS, ids=lambda case: f"{case.clipper!r:.70}")
def test_a_clipped_gradient_is_the_same(case: Any, default: torch.dtype) -> None:
    _assert_same(_clipped(default, case.clipper), _clipped(torch.float32, case.clipper))


def _trained(default: torch.dtype, plan: tg.Plan) -> Grads:
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 2))
    batches = [torch.randn(8, 20, generator=torch.Generator().manual_seed(n)) for n in range(12)]
    torch.set_default_dtype(default)
    pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), plan)
    for window in pipe.windows(batches):
        for batch in window:
            pipe.backward(model(batch).square().mean())
        pipe.step()
    if any(slot.role == "residual" for slot in plan.slots.values()):
        pipe.flush()
    pipe.close()
    return {name: value.detach() for name, value in model.named_parameters()}


TOPK = tg.codecs.TopK(0.1)
PLANS = [tg.Plan(compress=tg.Compress(TOPK, feedback=case.feedback)) for case in FEEDBACKS]
PLANS += [
    tg.Plan(
        accumulate=tg.Accumulate(micro_batches=3),
        compress=tg.Compress(tg.codecs.IntBlock(4), feedback=tg.ErrorFeedback()),
        clip=tg.clip.ZClip(max_norm=0.5),
    ),
    tg.Plan(local_clip=0.1, compress=tg.Compress(TOPK, feedback=tg.ErrorFeedback()), clip=tg.clip.AdaGC()),
    tg.Plan(
        accumulate=tg.Accumulate(micro_batches=2),
        clip=tg.clip.AutoClip(),
        loss_scale=tg.LossScale(initial=8.0, growth_interval=1),
        noise_scale=tg.scaling.NoiseScale(),
    ),
]


@pytest.mark.parametrize("default", DEFAULTS, ids=str)
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan!r:.90}")
def test_weights_are_the_same(plan: tg.Plan, default: torch.dtype) -> None:
    _assert_same(_trained(default, plan), _trained(torch.float32, plan))
