"""What the meters of a window that a checkpoint was taken in have seen."""

from collections.abc import Mapping
from typing import Any

from tightgrad.pipeline.meters.loss_meter import LossMeter
from tightgrad.pipeline.meters.noise_meter import NoiseMeter


def measured(losses: LossMeter, noise: NoiseMeter | None) -> dict[str, Any]:
    """Return what the meters have seen of the window so far."""
    return {"losses": losses.seen(), "noise": None if noise is None else noise.seen()}


def measure_on(found: Mapping[str, Any], losses: LossMeter, noise: NoiseMeter | None) -> None:
    """Let the meters take up what `measured` gave."""
    losses.see_again(found["losses"])
    if noise is not None and found["noise"] is not None:
        noise.see_again(found["noise"])
