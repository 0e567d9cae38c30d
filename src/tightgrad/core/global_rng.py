"""The generators that a forward draws from: torch's on the CPU and on every GPU, NumPy's and Python's."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class GlobalRng:
    """Holds the state of these generators, so that a forward can draw the same random numbers again.

    Generators that user code makes for itself are not included.

    Examples:
        >>> import torch
        >>> from tightgrad.core.global_rng import GlobalRng
        >>> before = GlobalRng.now()
        >>> first = torch.randn(3)
        >>> before.restore()
        >>> torch.equal(first, torch.randn(3))
        True
    """

    cpu: Tensor
    cuda: tuple[Tensor, ...]
    numpy: Any
    python: Any

    @classmethod
    def now(cls) -> "GlobalRng":
        """Return the state as it is."""
        cuda = tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else ()
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())

    def restore(self) -> None:
        """Set all generators back to this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))
        np.random.set_state(self.numpy)
        random.setstate(self.python)
