"""Tensors as numpy arrays and back, bfloat16 as well."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_numpy(tensor: Tensor) -> Any:
    """A numpy array with its own memory; bfloat16 as `ml_dtypes.bfloat16`."""
    if tensor.dtype is not torch.bfloat16:
        return tensor.detach().numpy().copy()
    import ml_dtypes

    return tensor.detach().view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)


def to_torch(array: Any) -> Tensor:
    """A tensor with its own memory."""
    array = np.array(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
