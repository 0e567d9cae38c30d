"""Clipping: one file per method. A line here registers the method under its card's id."""

from tightgrad.clip.global_norm import GlobalNorm as GlobalNorm
from tightgrad.clip.value import Value as Value
