"""Clipping: one file per method. A line here registers the method under its card's id."""

from tightgrad.clip.adagc import AdaGC as AdaGC
from tightgrad.clip.agc import AGC as AGC
from tightgrad.clip.autoclip import AutoClip as AutoClip
from tightgrad.clip.block_rms import BlockRMS as BlockRMS
from tightgrad.clip.combine import ByName as ByName
from tightgrad.clip.combine import Chain as Chain
from tightgrad.clip.combine import PerOptimizer as PerOptimizer
from tightgrad.clip.global_norm import GlobalNorm as GlobalNorm
from tightgrad.clip.per_tensor_norm import PerTensorNorm as PerTensorNorm
from tightgrad.clip.value import Value as Value
from tightgrad.clip.zclip import ZClip as ZClip
