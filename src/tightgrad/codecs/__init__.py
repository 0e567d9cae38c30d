"""Codecs: one file per method. A line here registers the method under its card's id."""

from tightgrad.codecs.by_step import ByStep as ByStep
from tightgrad.codecs.cast import Cast as Cast
from tightgrad.codecs.chunked_topk import ChunkedTopK as ChunkedTopK
from tightgrad.codecs.dct_topk import DCTTopK as DCTTopK
from tightgrad.codecs.density_warmup import DensityWarmup as DensityWarmup
from tightgrad.codecs.fp8 import FP8 as FP8
from tightgrad.codecs.hadamard import Hadamard as Hadamard
from tightgrad.codecs.int_block import IntBlock as IntBlock
from tightgrad.codecs.natural import Natural as Natural
from tightgrad.codecs.per_tensor import PerTensor as PerTensor
from tightgrad.codecs.qsgd import QSGD as QSGD
from tightgrad.codecs.random_k import RandomK as RandomK
from tightgrad.codecs.sampled_threshold import SampledThreshold as SampledThreshold
from tightgrad.codecs.sign import Sign as Sign
from tightgrad.codecs.size_adaptive import SizeAdaptive as SizeAdaptive
from tightgrad.codecs.stochastic_prune import StochasticPrune as StochasticPrune
from tightgrad.codecs.terngrad import TernGrad as TernGrad
from tightgrad.codecs.threshold import Threshold as Threshold
from tightgrad.codecs.topk import TopK as TopK
