"""Methods of this package that those of another one are tried with."""

from tightgrad.codecs import Cast, IntBlock, TopK
from tightgrad.core.protocols import Codec
from tightgrad.reducers import Gather, Linear, TwoShot
from tightgrad.testing.reducer_checks import ReduceCase

CODECS: tuple[Codec | None, ...] = (None, Cast("float32"), Cast("bfloat16"), IntBlock(8), TopK(0.25))
REDUCERS = (
    ReduceCase(Gather(), rounding="element"),
    ReduceCase(TwoShot(), rounding="element"),
    ReduceCase(Linear(), rounding="element"),
)
