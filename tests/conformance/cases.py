"""The canonical settings of every method: a new method is one line here.

`test_complete.py` fails while a registered codec, clipper, reducer or feedback is missing.
"""

import tightgrad as tg
from conformance.wire_bytes import (
    dense_nbytes,
    gather_nbytes,
    hierarchical_nbytes,
    linear_nbytes,
    powersgd_nbytes,
    two_shot_nbytes,
)
from tightgrad.codecs import (
    FP8,
    QSGD,
    ByStep,
    Cast,
    ChunkedTopK,
    DCTTopK,
    DensityWarmup,
    Hadamard,
    IntBlock,
    Natural,
    PerTensor,
    RandomK,
    SampledThreshold,
    Sign,
    SizeAdaptive,
    StochasticPrune,
    TernGrad,
    Threshold,
    TopK,
)
from tightgrad.core.protocols import Codec
from tightgrad.reducers import Dense, Gather, Hierarchical, Linear, MajorityVote, PowerSGD, SparseTwoShot, TwoShot
from tightgrad.testing import ClipCase, FeedbackCase, ReduceCase

CODECS: tuple[Codec, ...] = (
    Cast("bfloat16"),
    Cast("float16"),
    IntBlock(bits=8),
    IntBlock(bits=4, block_size=32),
    IntBlock(bits=8, block_size=64, rounding="stochastic"),
    IntBlock(bits=4, block_size=32, rounding="stochastic"),
    TopK(density=0.01),
    TopK(density=0.25, values=IntBlock(bits=8, block_size=16)),
    TopK(density=1.0, values=Cast("float16")),
    Cast("float32"),
    FP8("e4m3", block_size=64),
    FP8("e5m2"),
    IntBlock(bits=2, block_size=16),
    Hadamard(IntBlock(bits=4, block_size=32), block_size=64),
    Hadamard(IntBlock(bits=8, rounding="stochastic"), block_size=32),
    QSGD(levels=7, block_size=64),
    QSGD(levels=2, block_size=32, norm="max"),
    QSGD(levels=1, block_size=128, coding="elias"),
    TernGrad(block_size=64),
    TernGrad(clip_deviations=2.5),
    Natural(block_size=64),
    Sign(block_size=32),
    ChunkedTopK(block_size=64, count_per_block=8),
    DCTTopK(block_size=32, count_per_block=8),
    RandomK(density=0.25),
    RandomK(density=0.5, scaling="unbiased"),
    RandomK(density=0.25, values=IntBlock(8)),
    Threshold(0.5),
    SampledThreshold(density=0.1, num_samples=64, values=IntBlock(8)),
    StochasticPrune(density=0.3),
    SizeAdaptive(TopK(0.05), threshold=256),
    SizeAdaptive(IntBlock(4), small=Cast("bfloat16")),
    PerTensor((("matrix", TopK(0.1)), ("bias*", Cast("float32"))), default=IntBlock(8)),
    ByStep(((0, IntBlock(8)), (4, IntBlock(4, block_size=96)))),
    DensityWarmup(TopK(0.01), start=0.5, steps=8),
)


def two_optimizers() -> list[list[str]]:
    return [["conv", "matrix", "weight"], ["bias", "scalar", "empty"]]


CLIPPERS: tuple[ClipCase, ...] = (
    ClipCase(tg.clip.GlobalNorm(1.0), limit="model"),
    ClipCase(tg.clip.GlobalNorm(0.5, norm_type=1.0), limit="model", bound=0.5, norm_type=1.0),
    ClipCase(tg.clip.GlobalNorm(0.1, norm_type=float("inf")), limit="model", bound=0.1, norm_type=float("inf")),
    ClipCase(tg.clip.GlobalNorm(1.0, compat="torch"), limit="model"),
    ClipCase(tg.clip.Value(0.25), limit="element", bound=0.25, keeps_direction=False),
    ClipCase(tg.clip.PerTensorNorm(0.5), limit="tensor", bound=0.5, keeps_direction=False),
    ClipCase(tg.clip.BlockRMS(0.1), limit=None, keeps_direction=False),
    ClipCase(tg.clip.AGC(exclude=("bias",)), limit=None, keeps_direction=False),
    ClipCase(tg.clip.AutoClip(), limit=None, keeps_direction=False),  # the first norm is its own percentile
    ClipCase(tg.clip.ZClip(max_norm=1.0), limit="model"),
    ClipCase(tg.clip.AdaGC(), limit="model"),
    ClipCase(tg.clip.Chain((tg.clip.Value(0.5), tg.clip.GlobalNorm(1.0))), limit="model", keeps_direction=False),
    ClipCase(
        tg.clip.ByName((("bias", tg.clip.Value(0.25)),), default=tg.clip.GlobalNorm(1.0)),
        limit=None,
        keeps_direction=False,
    ),
    ClipCase(
        tg.clip.PerOptimizer((tg.clip.GlobalNorm(1.0), tg.clip.GlobalNorm(0.5))).for_optimizers(two_optimizers),
        limit=None,
        keeps_direction=False,
    ),
)


def always(codec: Codec | None) -> bool:
    return True


def without_codec(codec: Codec | None) -> bool:
    return codec is None


REDUCERS: tuple[ReduceCase, ...] = (
    ReduceCase(Dense(), dense_nbytes, rounding="element", nearness="exact", zeros_send_nothing=always),
    ReduceCase(Gather(), gather_nbytes, rounding="element", zeros_send_nothing=always),
    ReduceCase(TwoShot(), two_shot_nbytes, rounding="element", never_above_dense=True),
    ReduceCase(Linear(), linear_nbytes, rounding="element", zeros_send_nothing=always),
    ReduceCase(SparseTwoShot(), two_shot_nbytes),
    ReduceCase(MajorityVote(), gather_nbytes, rounding="element", nearness=None),
    ReduceCase(PowerSGD(approximation_rank=2), powersgd_nbytes(2), nearness=None, zeros_send_nothing=without_codec),
    ReduceCase(Hierarchical(2), hierarchical_nbytes(2, two_shot_nbytes)),
)

# All that is sent plus the residual is all that was put in, but for a rounded residual and for momentum.
FEEDBACKS: tuple[FeedbackCase, ...] = (
    FeedbackCase(tg.ErrorFeedback()),
    FeedbackCase(tg.ErrorFeedback(residual="int8"), conserves=False),
    FeedbackCase(tg.feedback.MomentumCorrection(), conserves=False),
    FeedbackCase(tg.feedback.EF21(), conserves=False),
)
