"""Gradient accumulation, clipping and compression, right on their own and right together.

    backward -> accumulate -> guard -> error feedback -> encode -> collective -> decode -> clip -> optimizer.step
                weighted sum  finite?  + residual        payload   traffic       sum       one norm

`attach` puts a `Plan` on a model and an optimizer; the folders of this package are the path above.
"""

from tightgrad import clip, codecs, collectives, feedback, reducers
from tightgrad.accumulate import Accumulate
from tightgrad.core.card import MethodCard
from tightgrad.core.errors import (
    ConfigError,
    IncompatiblePlanError,
    NonFiniteGradientError,
    PayloadError,
    RankMismatchError,
    StateMismatchError,
    TightGradError,
    UnsupportedError,
    UsageError,
)
from tightgrad.feedback import ErrorFeedback
from tightgrad.pipeline.attach import attach
from tightgrad.pipeline.guard import Guard
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.plan import Compress, Plan
from tightgrad.pipeline.record import StepRecord
from tightgrad.version import __version__

__all__ = [
    "Accumulate",
    "Compress",
    "ConfigError",
    "ErrorFeedback",
    "GradientPipeline",
    "Guard",
    "IncompatiblePlanError",
    "MethodCard",
    "NonFiniteGradientError",
    "PayloadError",
    "Plan",
    "RankMismatchError",
    "StateMismatchError",
    "StepRecord",
    "TightGradError",
    "UnsupportedError",
    "UsageError",
    "__version__",
    "attach",
    "clip",
    "codecs",
    "collectives",
    "feedback",
    "reducers",
]
