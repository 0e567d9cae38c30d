"""A plain module: gradients lie where autograd puts them."""

from contextlib import AbstractContextManager, nullcontext

from torch import nn

from tightgrad.adapters.names import trainable_parameters
from tightgrad.core.protocols import Collective


class SingleAdapter:
    """A module without a wrapper; with a collective of several ranks, each trains a replica of its own."""

    def __init__(self, module: nn.Module, collective: Collective) -> None:
        self.collective = collective
        self.parameters = trainable_parameters(module)

    def window(self) -> AbstractContextManager[None]:
        """Nothing to hold: nothing is synchronised."""
        return nullcontext()
