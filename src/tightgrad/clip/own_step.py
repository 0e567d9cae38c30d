"""Whether an optimizer's `step` is torch's own, and nothing else looks at the gradients before it.

A factor that travels in `optimizer.grad_scale` reaches only code that reads that attribute. torch's fused kernels do.
A subclass with a `step` of its own, a patched instance and a step pre-hook read `.grad` instead: they would see
gradients that are not clipped. So torch's own code is recognised, layer by layer, and everything else is taken for a
reader of `.grad`.
"""

import sys
from types import FunctionType
from typing import Any
from weakref import ReferenceType

import torch
from torch.optim import lr_scheduler
from torch.optim import optimizer as torch_optimizer

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
"""Their fused kernels divide by `grad_scale`, and write the result back to `.grad`, where step post-hooks find it."""

CHANNELS = ("grad_scale", "found_inf")
"""The attributes that torch's fused steps read."""

# Of these modules are the wrappers that torch itself puts around a step: the one that runs step hooks, the one that
# switches gradients off, and the one by which a learning-rate scheduler knows that the optimizer has stepped.
_WRAPPING = (torch_optimizer.__dict__, lr_scheduler.__dict__)
_STEPPING = tuple(sys.modules[kind.__module__].__dict__ for kind in FUSED)
# A subclass may have these without changing what a step does.
_HARMLESS = {"__init__", "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate__"} | {
    *("__qualname__", "__slotnames__", "__static_attributes__", "__firstlineno__", "__parameters__", "__orig_bases__")
}


def reader_of_gradients(optimizer: torch.optim.Optimizer) -> str | None:
    """Name what may look at `.grad` before torch's own fused kernel, as it is now; None if nothing does.

    Hooks are found wherever and whenever they were registered, so this is to be asked at each step. One that says
    `reads_gradients = False` of itself, as `StepGuard` does, is let pass.
    """
    kind = next((cls for cls in type(optimizer).__mro__ if cls in FUSED), None)
    if kind is None:
        return f"{type(optimizer).__name__} is none of torch's Adam, AdamW, SGD and Adagrad"
    if not _is_torchs_step(optimizer.step, optimizer):
        return f"the step() of this {type(optimizer).__name__} is not torch's own"
    if replaced := _replaced(optimizer, kind):
        return f"this {type(optimizer).__name__} has a {replaced} of its own"
    # Both names are private in torch 2.9 to 2.14. A torch without them gets its gradients multiplied in place.
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None)
    global_hooks = getattr(torch_optimizer, "_global_optimizer_pre_hooks", None)
    if hooks is None or global_hooks is None:
        return "this torch does not show its step pre-hooks"
    reads = any(getattr(hook, "reads_gradients", True) for hook in (*hooks.values(), *global_hooks.values()))
    return "a step pre-hook is registered" if reads else None


def _is_torchs_step(step: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether every layer of `step`, down to the innermost function, is code of torch's that steps this optimizer.

    `functools.wraps` copies a function's names but not its globals, so these tell where it was written.
    """
    if getattr(step, "__self__", optimizer) is not optimizer:
        return False
    layer = getattr(step, "__func__", step)
    while isinstance(layer, FunctionType):
        inner = getattr(layer, "__wrapped__", None)
        if inner is None:
            return layer.__name__ == "step" and any(layer.__globals__ is module for module in _STEPPING)
        if not any(layer.__globals__ is module for module in _WRAPPING) or not _is_bound_to(layer, optimizer):
            return False
        layer = inner
    return False


def _is_bound_to(layer: FunctionType, optimizer: torch.optim.Optimizer) -> bool:
    """Whether a wrapper that holds its optimizer by a weak reference, as a scheduler's does, holds this one."""
    held = [cell.cell_contents for cell in layer.__closure__ or ()]
    return all(reference() is optimizer for reference in held if isinstance(reference, ReferenceType))


def _replaced(optimizer: torch.optim.Optimizer, kind: type[torch.optim.Optimizer]) -> str | None:
    """What torch's step uses and a subclass, or this instance, has in another version; None if nothing."""
    own = [vars(cls) for cls in type(optimizer).__mro__[: type(optimizer).__mro__.index(kind)]]
    names = {name for members in (*own, vars(optimizer)) for name in members} - _HARMLESS - {"step"}
    return next((name for name in sorted(names) if name in CHANNELS or hasattr(kind, name)), None)
