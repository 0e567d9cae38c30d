"""The methods that are compared: each a plan and, for DGC, an optimizer without momentum of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import tightgrad as tg
from tightgrad.codecs import (
    QSGD,
    Cast,
    DensityWarmup,
    IntBlock,
    RandomK,
    SampledThreshold,
    Sign,
    SizeAdaptive,
    TernGrad,
    TopK,
)
from tightgrad.core.protocols import Codec
from tightgrad.feedback import MomentumCorrection
from tightgrad.reducers import PowerSGD
from tightgrad_lab.training.case import Settings

SMALL = 1024
"""Gradients with fewer elements, and those of one dimension, are not sparsified."""
DGC_CLIP = 2.0
DGC_START = 0.25
PLAIN, ERROR_FEEDBACK, MOMENTUM_CORRECTION = "none", "error_feedback", "momentum_correction"


@dataclass(frozen=True)
class Method:
    """One way to send a gradient.

    Args:
        id: its name.
        family: "dense", "quantise", "prune", "sparsify" or "low_rank".
        compress: codec and reducer, from the number of steps of density warm-up.
        feedbacks: what it runs with.
    """

    id: str
    family: str
    compress: Callable[[int], tg.Compress]
    feedbacks: tuple[str, ...] = (PLAIN, ERROR_FEEDBACK)


def _codec(codec: Codec) -> Callable[[int], tg.Compress]:
    return lambda steps: tg.Compress(codec)


def _sparse(density: float) -> Callable[[int], tg.Compress]:
    return lambda steps: tg.Compress(SizeAdaptive(TopK(density), threshold=SMALL))


def _pruned(density: float) -> Callable[[int], tg.Compress]:
    return lambda steps: tg.Compress(SizeAdaptive(SampledThreshold(density), threshold=SMALL))


def _dgc(density: float) -> Callable[[int], tg.Compress]:
    return lambda steps: tg.Compress(
        SizeAdaptive(DensityWarmup(TopK(density), start=DGC_START, steps=steps), threshold=SMALL)
    )


METHODS = {
    method.id: method
    for method in (
        Method("dense", "dense", lambda steps: tg.Compress(), (PLAIN,)),
        Method("float16", "quantise", _codec(Cast("float16"))),
        Method("int8", "quantise", _codec(IntBlock(8))),
        Method("int4", "quantise", _codec(IntBlock(4))),
        Method("int2", "quantise", _codec(IntBlock(2))),
        Method("qsgd", "quantise", _codec(QSGD(7))),
        Method("terngrad", "quantise", _codec(TernGrad())),
        Method("sign", "quantise", _codec(Sign())),
        Method("prune_10", "prune", _pruned(0.1)),
        Method("topk_10", "sparsify", _sparse(0.1)),
        Method("topk_1", "sparsify", _sparse(0.01)),
        Method("topk_01", "sparsify", _sparse(0.001)),
        Method("randomk_1", "sparsify", _codec(RandomK(0.01))),
        Method("dgc_01", "sparsify", _dgc(0.001), (MOMENTUM_CORRECTION,)),
        Method("powersgd_4", "low_rank", lambda steps: tg.Compress(None, PowerSGD(4))),
    )
}


def make_plan(method: Method, feedback: str, momentum: float, warmup_steps: int) -> tg.Plan:
    """The plan of a method.

    Args:
        method: what is sent.
        feedback: one of the method's.
        momentum: of momentum correction.
        warmup_steps: of its density.
    """
    compress = method.compress(warmup_steps)
    if feedback == ERROR_FEEDBACK:
        compress = replace(compress, feedback=tg.ErrorFeedback())
    elif feedback == MOMENTUM_CORRECTION:
        compress = replace(compress, feedback=MomentumCorrection(momentum))
    local_clip = DGC_CLIP if feedback == MOMENTUM_CORRECTION else None
    return tg.Plan(compress=compress, local_clip=local_clip, guard=tg.Guard("skip"))


def training_settings(settings: Settings, feedback: str) -> Settings:
    """Where the momentum is in the feedback, the optimizer is plain SGD.

    Its weight decay is then divided by 1 - momentum: through the momentum, every decay acts 1 / (1 - momentum) times.
    """
    if feedback != MOMENTUM_CORRECTION:
        return settings
    return replace(settings, momentum=0.0, weight_decay=settings.weight_decay / (1 - settings.momentum))
