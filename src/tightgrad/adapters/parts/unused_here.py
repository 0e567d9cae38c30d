"""Parameters that a rank has not used in a backward in which DistributedDataParallel waits for all gradients.

Without `find_unused_parameters` DDP says so in the next forward only. Until then a rank that has used all of them waits
for this one, and this one goes on with gradients that were never summed.
"""

import re

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tightgrad.core.errors import UsageError
from tightgrad.core.notices import named, warn
from tightgrad.core.protocols import Collective

_MISSING = re.compile(r"Parameter indices which did not receive grad for rank \d+: ([\d ]+)")


class UnusedHere:
    """Finishes a backward with gradients of 0, and warns once.

    Args:
        model: the wrapper.
        collective: the ranks that it sums over.
    """

    def __init__(self, model: DistributedDataParallel, collective: Collective) -> None:
        self._model, self._collective = model, collective
        self._has_warned = False

    def add_zeros(self, stacklevel: int) -> None:
        """Add 0 to what this rank has not used, if DDP still waits for it, so that all ranks go on.

        Raises:
            UsageError: torch does not say which parameters are missing, or they cannot have a gradient.
        """
        try:
            self._model.reducer._check_reducer_finalized()  # private in torch 2.9 to 2.14; also looked for at attach
            return
        except RuntimeError as error:
            waits = error
        try:
            missing = self._missing(str(waits))
            torch.autograd.backward([p.view_as(p) for p in missing], [torch.zeros_like(p) for p in missing])
        except (RuntimeError, LookupError) as error:  # also where parameters were frozen since, and others are meant
            raise UsageError(
                "DistributedDataParallel did not sum this backward's gradients, since parameters went unused on rank "
                f"{self._collective.rank}, or were frozen after it was built; wrap the model with "
                f"find_unused_parameters=True, after freezing. torch says: {waits}"
            ) from error
        if not self._has_warned:
            self._has_warned = True
            warn(self._words(missing), stacklevel + 1)

    def _missing(self, waits: str) -> list[nn.Parameter]:
        found = _MISSING.search(waits)
        if found is None:
            raise LookupError(waits)
        parameters, _ = self._model._build_params_for_reducer()  # in the order of these indices
        return [parameters[int(index)] for index in found[1].split()]

    def _words(self, missing: list[nn.Parameter]) -> str:
        names = [name for name, p in self._model.module.named_parameters() if any(p is one for one in missing)]
        return (
            f"{named(names)} had no gradient in a backward on rank {self._collective.rank}, where "
            "DistributedDataParallel waits for that of every parameter. It was taken for 0, which is the gradient of "
            "the big batch if another rank uses the parameter; one that no rank uses is stepped with 0, so that weight "
            "decay and momentum still move it. Wrap the model with DistributedDataParallel(find_unused_parameters="
            "True), which leaves that one alone, or freeze it."
        )
