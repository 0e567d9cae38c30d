"""Layers that somebody meant to freeze."""

from torch import nn


def frozen_modules(model: nn.Module) -> list[str]:
    """Names of modules with `module.requires_grad = False`, which freezes nothing: their parameters still train."""
    found = []
    for name, module in model.named_modules():
        meant = vars(module).get("requires_grad")
        if meant is False and any(parameter.requires_grad for parameter in module.parameters()):
            found.append(name or "the model")
    return found
