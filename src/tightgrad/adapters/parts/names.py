"""Names of parameters, the same under every wrapper."""

from collections.abc import Set

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile's wrapper."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module whose parameters have the names that all wrappers share."""
    inner = unwrap_compiled(model)
    return inner.module if isinstance(inner, DistributedDataParallel) else inner


def trainable_parameters(module: nn.Module, only: Set[int] | None = None) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, each once (tied ones under their first name), in order of definition.

    Args:
        module: that has them.
        only: identities of those that count; None lets all count.
    """
    return {
        name.replace("_orig_mod.", ""): parameter
        for name, parameter in module.named_parameters(remove_duplicate=True)
        if parameter.requires_grad and (only is None or id(parameter) in only)
    }
