"""What the experiment runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What is run.

    Args:
        micro_batches: K of the windows in the figure.
        batch_size: lines of one micro-batch there.
        width: of the model there.
        layers: of the model there.
        seeds: draws of tokens over which each loop is run.
        hang_seconds: after how long ranks count as hanging.
        collective_seconds: how long one collective may wait where a rank runs out of memory.
        frameworks: the version of what each loop needs; None if it is not installed.
        ranks: processes.
    """

    micro_batches: int
    batch_size: int
    width: int
    layers: int
    seeds: int
    frameworks: dict[str, str | None]
    hang_seconds: float = 40.0
    collective_seconds: float = 8.0
    ranks: int = 2
