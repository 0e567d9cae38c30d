"""Four instruments to try things out in the book and on the slides: JavaScript, and what Python writes around it."""

from tightgrad_lab.instruments.markup import NAMES, instrument, style, title, words, write_script

__all__ = ["NAMES", "instrument", "style", "title", "words", "write_script"]
