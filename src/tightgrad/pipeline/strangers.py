"""Before each window: does the optimizer hold only what the pipeline sees?"""

from collections.abc import Mapping

import torch
from torch import nn

from tightgrad.core.errors import UsageError


def check_no_strangers(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise `UsageError` if the optimizer holds a trainable parameter that is not among `parameters`."""
    known = {id(parameter) for parameter in parameters.values()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [tuple(p.shape) for p in held if p.requires_grad and id(p) not in known]
    if strangers:
        raise UsageError(
            f"the optimizer holds {len(strangers)} parameter(s) that attach() did not see (shapes "
            f"{str(strangers[:3])[1:-1]}): they were frozen, were not yet in the optimizer, or belong to another "
            "module. Their gradients would be neither summed over ranks nor clipped nor cleared. Unfreeze before "
            "attach() and give them to the optimizer before it, or attach a module that has them all."
        )
