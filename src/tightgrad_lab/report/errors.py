"""The report's only error."""


class ReportError(Exception):
    """A file under runs/ is missing or malformed; the message says which, what is wrong and the fix."""
