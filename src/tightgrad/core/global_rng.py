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
        """Set all generators back to this state, but for GPUs that are not there."""
        torch.set_rng_state(self.cpu)
        for device, state in enumerate(self.cuda[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def changed_since(self, before: "GlobalRng") -> frozenset[str]:
        """Return which generators have drawn between that state and this one, in words."""
        same = {
            "torch's global generator": torch.equal(self.cpu, before.cpu),
            "torch's generator of a GPU": len(self.cuda) == len(before.cuda)
            and all(map(torch.equal, self.cuda, before.cuda)),
            "numpy.random": all(map(np.array_equal, self.numpy, before.numpy)),
            "random": self.python == before.python,
        }
        return frozenset(name for name, is_same in same.items() if not is_same)
