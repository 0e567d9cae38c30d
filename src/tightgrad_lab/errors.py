"""What goes wrong in the lab, each with one line for a person."""


class LabError(Exception):
    """Root of the lab's errors; the message is one line."""


class ArgumentError(LabError):
    """What was asked for cannot be; the message says what instead."""


class RunError(LabError):
    """A training run failed; the message names the file with the traceback."""


class DataError(LabError):
    """A data set that is not in the package cannot be had; the message says what was tried, and why it failed."""
