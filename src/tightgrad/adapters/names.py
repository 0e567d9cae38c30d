"""Names of parameters, the same under every wrapper."""

from torch import nn


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile's wrapper."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require gradients, each once (tied ones under their first name), in order of definition."""
    return {
        name.replace("_orig_mod.", ""): parameter
        for name, parameter in module.named_parameters(remove_duplicate=True)
        if parameter.requires_grad
    }
