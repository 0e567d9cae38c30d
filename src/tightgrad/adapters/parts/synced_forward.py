"""Did a forward ask DistributedDataParallel to sum the gradients of the backward after it?

DDP sums in the backward after a forward of its own, outside of `no_sync`. The forward of the module within, or of a
compiled copy of it, leaves each rank with its own gradients, and DDP says nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tightgrad.core.errors import UsageError


@contextmanager
def asks_for_sum(model: DistributedDataParallel) -> Iterator[None]:
    """Hold around forward and backward of a micro-batch whose gradients DDP is to sum.

    A wrapper that is itself compiled calls no hooks that are set later, and is not looked at.

    Raises:
        UsageError: at the end, if no forward went through the wrapper with synchronisation on.
    """
    if model._compiled_call_impl is not None:  # by model.compile(); torch 2.9 to 2.15
        yield
        return
    asked: list[bool] = []

    def note(module: nn.Module, args: Any) -> None:
        asked.append(bool(model.require_backward_grad_sync))

    with model.register_forward_pre_hook(note):
        yield
    if not any(asked):
        went = "under no_sync()" if asked else "past DistributedDataParallel"
        raise UsageError(
            f"the forward of this micro-batch went {went}, so its gradients were not summed over ranks. Call the "
            "wrapped model itself, model(batch), and not model.module, a method of it or a module compiled before it "
            "was wrapped; leave out no_sync(), which the pipeline sets itself; and give each batch its forward and "
            "pipe.backward(loss) within `for batch in window:`, before the next batch is taken."
        )
