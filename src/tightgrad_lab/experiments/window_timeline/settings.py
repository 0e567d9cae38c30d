"""What the experiment runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        micro_batches: values of K; the first one is 1, no accumulation.
        samples: of one rank's window, whatever K is; a multiple of every K.
        shown: K of the time line.
        windows: windows of the time line, of which the one of median duration is shown.
        rounds: timed steps of each K, taken in turn.
        seeds: weights and data with which gradients are compared with the exact one.
        width: of the model.
        layers: of the model.
        ranks: processes, under DistributedDataParallel.
    """

    micro_batches: tuple[int, ...]
    samples: int
    shown: int
    windows: int
    rounds: int
    seeds: int
    width: int
    layers: int
    ranks: int = 2
