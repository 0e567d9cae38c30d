"""The error tree.

    TightGradError
    ├── ConfigError               a setting is out of its bounds, unknown or missing (also a ValueError)
    │   └── IncompatiblePlanError parts of a plan that cannot run together
    ├── UsageError                the calls came in an order that cannot be right (also a RuntimeError)
    ├── UnsupportedError          a wrapper, device or dtype that TightGrad does not handle
    ├── NonFiniteGradientError    inf or NaN in a gradient, under the policy "raise"
    ├── GradientSpikeError        one step after the other was left out because its gradient was too large
    ├── OutOfMemoryError          no micro-batch is small enough (also a MemoryError)
    ├── RankMismatchError         ranks run with different plans, layouts or versions
    ├── CommunicationError        a rank died, or the network is gone (also a RuntimeError)
    ├── PayloadError              bytes from the network that are not a payload of the expected layout
    ├── CheckpointError           a checkpoint that could not be written, or that cannot be read
    └── StateMismatchError        a checkpoint that does not belong to this pipeline

A message says what failed, the value, the bound or the alternatives, and the fix.
"""


class TightGradError(Exception):
    """Names what failed and how to fix it; the base class of all errors that TightGrad raises on purpose."""


class ConfigError(TightGradError, ValueError):
    """Raised when a setting is out of its bounds, unknown or missing."""


class IncompatiblePlanError(ConfigError):
    """Raised for parts of a plan that cannot run together."""


class UsageError(TightGradError, RuntimeError):
    """Raised when calls come in an order that cannot be right."""


class UnsupportedError(TightGradError):
    """Raised for a wrapper, device or dtype that TightGrad does not handle."""


class NonFiniteGradientError(TightGradError):
    """Raised when there is inf or NaN in a gradient, under the policy "raise"."""


class GradientSpikeError(TightGradError):
    """Raised when one step after the other was left out because its gradient was above the guard's bound."""


class OutOfMemoryError(TightGradError, MemoryError):
    """Raised when no micro-batch is small enough for the memory."""


class RankMismatchError(TightGradError):
    """Raised when ranks have different plans, layouts or versions."""


class CommunicationError(TightGradError, RuntimeError):
    """Raised when a rank has died, or the network is gone."""


class PayloadError(TightGradError):
    """Raised for bytes from the network that are not a payload of the expected layout."""


class StateMismatchError(TightGradError):
    """Raised for a checkpoint that does not belong to this pipeline."""


class CheckpointError(TightGradError):
    """Raised when a checkpoint could not be written, or cannot be read."""
