"""The option `--device` of measurements."""

from typing import Annotated

import typer

from tightgrad_lab.errors import ArgumentError

Device = Annotated[str, typer.Option(help="Keep the tensors on this device: cpu or cuda.")]


def device_name(device: str) -> str:
    """What computes, for the record.

    Raises:
        ArgumentError: this torch cannot use it.
    """
    import torch

    if device == "cpu":
        return device
    if device != "cuda" or not torch.cuda.is_available():
        raise ArgumentError(f"--device {device} cannot be used by this torch ({torch.__version__}); take cpu.")
    return str(torch.cuda.get_device_name())
