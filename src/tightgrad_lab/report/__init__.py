"""The handbook: turns the files under runs/ into one static page per language. Imports neither torch nor tightgrad."""

from tightgrad_lab.report.build import build
from tightgrad_lab.report.errors import ReportError

__all__ = ["ReportError", "build"]
