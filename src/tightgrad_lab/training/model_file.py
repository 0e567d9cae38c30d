"""A trained model in a safetensors file."""

import copy
from pathlib import Path

from safetensors.torch import load_model as load_tensors
from safetensors.torch import save_model as save_tensors
from torch import nn

NAME = "model.safetensors"


def save_model(model: nn.Module, folder: Path) -> None:
    """Write its parameters and buffers; tensors that modules share are written once."""
    partial = folder / f".{NAME}.tmp"
    apart = copy.deepcopy(model).cpu()  # cuDNN keeps an LSTM's weights in one storage, which safetensors refuses
    save_tensors(apart, str(partial))
    partial.replace(folder / NAME)


def has_model(folder: Path) -> bool:
    """Whether `folder` holds a trained model of a finished run."""
    return (folder / NAME).is_file() and (folder / "summary.json").is_file()


def load_model(model: nn.Module, folder: Path) -> nn.Module:
    """Read them into a model of the same shape, and put it into evaluation mode."""
    load_tensors(model, folder / NAME)
    return model.eval()
