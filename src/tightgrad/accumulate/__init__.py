"""Accumulation: all micro-batches of one optimizer step, weighed by what all ranks have."""

from tightgrad.accumulate.default_weight import DefaultWeight as DefaultWeight
from tightgrad.accumulate.settings import Accumulate as Accumulate
from tightgrad.accumulate.window import Window as Window
