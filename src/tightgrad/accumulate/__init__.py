"""Accumulation: all micro-batches of one optimizer step, weighed by what all ranks have."""

from tightgrad.accumulate.default_weight import DefaultWeight as DefaultWeight
from tightgrad.accumulate.memory import ActivationMemory as ActivationMemory
from tightgrad.accumulate.memory import MemoryEstimate as MemoryEstimate
from tightgrad.accumulate.memory import OptimizerMemory as OptimizerMemory
from tightgrad.accumulate.memory import estimate_memory as estimate_memory
from tightgrad.accumulate.memory import largest_micro_batch as largest_micro_batch
from tightgrad.accumulate.memory import measure_activations as measure_activations
from tightgrad.accumulate.memory import optimizer_memory as optimizer_memory
from tightgrad.accumulate.settings import Accumulate as Accumulate
from tightgrad.accumulate.window import Window as Window
