"""Accumulation: all micro-batches of one optimizer step, counted before the first backward."""

from tightgrad.accumulate.settings import Accumulate as Accumulate
from tightgrad.accumulate.window import Window as Window
