"""Gradient accumulation, clipping and compression that stay correct when combined.

    backward -> accumulate -> guard -> error feedback -> encode -> collective -> decode -> clip -> optimizer.step
                weighted sum  finite?  + residual        payload   traffic       sum       one norm

`attach` puts a `Plan` on a model and an optimizer; the folders of this package are the path above.
"""

from tightgrad import clip, codecs, collectives, feedback, records, reducers, scaling
from tightgrad.accumulate import Accumulate
from tightgrad.clip.functional import clip_grad_norm_, clip_grad_value_, get_total_norm
from tightgrad.collectives.gather_with_grad import gather_with_grad
from tightgrad.core.card import MethodCard
from tightgrad.core.errors import (
    CheckpointError,
    CommunicationError,
    ConfigError,
    GradientSpikeError,
    IncompatiblePlanError,
    NonFiniteGradientError,
    OutOfMemoryError,
    PayloadError,
    RankMismatchError,
    StateMismatchError,
    TightGradError,
    UnsupportedError,
    UsageError,
)
from tightgrad.core.notices import TightGradWarning
from tightgrad.feedback import ErrorFeedback
from tightgrad.local.outer import OuterPipeline, attach_local
from tightgrad.pipeline import dcp
from tightgrad.pipeline.attach import attach
from tightgrad.pipeline.pipeline import GradientPipeline
from tightgrad.pipeline.premises.check_loss import LossCheck, check_loss
from tightgrad.pipeline.saving import load, save
from tightgrad.pipeline.saving_async import save_async
from tightgrad.plan.guard import Guard
from tightgrad.plan.local_updates import DiLoCo, LocalSGD
from tightgrad.plan.plan import Compress, Plan
from tightgrad.records.step_record import StepRecord
from tightgrad.scaling import Warmup, scale_adam, scale_lr
from tightgrad.scaling.loss_scale import LossScale
from tightgrad.sync.comm_hook import CommHook, ddp_comm_hook
from tightgrad.version import __version__

__all__ = [
    "Accumulate",
    "CheckpointError",
    "CommHook",
    "CommunicationError",
    "Compress",
    "ConfigError",
    "DiLoCo",
    "ErrorFeedback",
    "GradientPipeline",
    "GradientSpikeError",
    "Guard",
    "IncompatiblePlanError",
    "LocalSGD",
    "LossCheck",
    "LossScale",
    "MethodCard",
    "NonFiniteGradientError",
    "OutOfMemoryError",
    "OuterPipeline",
    "PayloadError",
    "Plan",
    "RankMismatchError",
    "StateMismatchError",
    "StepRecord",
    "TightGradError",
    "TightGradWarning",
    "UnsupportedError",
    "UsageError",
    "Warmup",
    "__version__",
    "attach",
    "attach_local",
    "check_loss",
    "clip",
    "clip_grad_norm_",
    "clip_grad_value_",
    "codecs",
    "collectives",
    "dcp",
    "ddp_comm_hook",
    "feedback",
    "gather_with_grad",
    "get_total_norm",
    "load",
    "records",
    "reducers",
    "save",
    "save_async",
    "scale_adam",
    "scale_lr",
    "scaling",
]
