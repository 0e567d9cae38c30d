"""The lecture's slides: one HTML deck per language, from the results, figures, tables and texts of the book."""

from tightgrad_lab.slides.build import build

__all__ = ["build"]
