"""Accumulation: all micro-batches of one optimizer step, weighed by what all ranks have."""

from tightgrad.accumulate.settings import Accumulate as Accumulate
from tightgrad.accumulate.weights import DefaultWeight as DefaultWeight
from tightgrad.accumulate.window import Window as Window
