"""The few shapes that everything else is made of: each has a file of its own, and this one gives all of them."""

from tightgrad.core.clipper import Clipper as Clipper
from tightgrad.core.clipper import GradNorm as GradNorm
from tightgrad.core.codec import Codec as Codec
from tightgrad.core.collective import Collective as Collective
from tightgrad.core.collective import ReduceOp as ReduceOp
from tightgrad.core.collective import Traffic as Traffic
from tightgrad.core.collective import TrafficMeter as TrafficMeter
from tightgrad.core.reducer import Feedback as Feedback
from tightgrad.core.reducer import Observe as Observe
from tightgrad.core.reducer import Reduce as Reduce
from tightgrad.core.reducer import ReduceContext as ReduceContext
from tightgrad.core.reducer import Reducer as Reducer
from tightgrad.core.reducer import Sizes as Sizes
