"""The error tree.

    TightGradError
    ├── ConfigError               a setting is out of its bounds, unknown or missing (also a ValueError)
    │   └── IncompatiblePlanError parts of a plan that cannot run together
    ├── UsageError                the calls came in an order that cannot be right (also a RuntimeError)
    ├── UnsupportedError          a wrapper, device or dtype that TightGrad does not handle
    ├── NonFiniteGradientError    inf or NaN in a gradient, under the policy "raise"
    ├── OutOfMemoryError               no micro-batch is small enough (also a MemoryError)
    ├── RankMismatchError         ranks run with different plans, layouts or versions
    ├── CommunicationError        a rank died, or the network is gone (also a RuntimeError)
    ├── PayloadError              bytes from the network that are not a payload of the expected layout
    ├── CheckpointError           a checkpoint that could not be written, or that cannot be read
    └── StateMismatchError        a checkpoint that does not belong to this pipeline

A message says what failed, the value, the bound or the alternatives, and the fix.
"""


class TightGradError(Exception):
    """Root of all errors that TightGrad raises on purpose."""


class ConfigError(TightGradError, ValueError):
    """A setting is out of its bounds, unknown or missing."""


class IncompatiblePlanError(ConfigError):
    """Parts of a plan that cannot run together."""


class UsageError(TightGradError, RuntimeError):
    """The calls came in an order that cannot be right."""


class UnsupportedError(TightGradError):
    """A wrapper, device or dtype that TightGrad does not handle."""


class NonFiniteGradientError(TightGradError):
    """Inf or NaN in a gradient, under the policy "raise"."""


class OutOfMemoryError(TightGradError, MemoryError):
    """No micro-batch is small enough."""


class RankMismatchError(TightGradError):
    """Ranks run with different plans, layouts or versions."""


class CommunicationError(TightGradError, RuntimeError):
    """A rank died, or the network is gone."""


class PayloadError(TightGradError):
    """Bytes from the network that are not a payload of the expected layout."""


class StateMismatchError(TightGradError):
    """A checkpoint that does not belong to this pipeline."""


class CheckpointError(TightGradError):
    """A checkpoint that could not be written, or that cannot be read."""
