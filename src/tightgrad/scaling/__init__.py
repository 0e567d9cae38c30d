"""Large batches: learning rate, warm-up, layer-wise optimizers, gradient noise scale."""

from tightgrad.scaling.lamb import LAMB as LAMB
from tightgrad.scaling.lars import LARS as LARS
from tightgrad.scaling.lr import Warmup as Warmup
from tightgrad.scaling.lr import scale_adam as scale_adam
from tightgrad.scaling.lr import scale_lr as scale_lr
from tightgrad.scaling.momentum import correct_momentum_ as correct_momentum_
from tightgrad.scaling.noise_scale import NoiseEstimate as NoiseEstimate
from tightgrad.scaling.noise_scale import NoiseScale as NoiseScale
from tightgrad.scaling.noise_scale import estimate_noise as estimate_noise
from tightgrad.scaling.noise_scale import small_batch_mean as small_batch_mean
