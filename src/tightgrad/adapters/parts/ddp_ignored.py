"""Parameters that a DistributedDataParallel module leaves alone: each rank trains its own, as with experts.

One norm, one vote and one sum over ranks are for parameters that all ranks share. Experts would be averaged, and their
norms would give each rank another clipping factor.
"""

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from tightgrad.adapters.parts.fsdp2_torch import is_fsdp2
from tightgrad.adapters.plain import trainable_parameters, unwrap_compiled
from tightgrad.core.errors import UnsupportedError
from tightgrad.core.notices import named


def check_reduces_all(model: nn.Module) -> None:
    """Raise unless a module in DistributedDataParallel has all of its trainable parameters reduced by it.

    Args:
        model: any module; one in no such wrapper passes.

    Raises:
        UnsupportedError: it ignores some, reduces them apart, or has never seen them; or a module inside has a wrapper
            of its own.
    """
    inner = unwrap_compiled(model)
    if not isinstance(inner, DistributedDataParallel):
        return
    _check_no_wrapper_inside(inner)
    ignored = ignored_parameters(inner)
    if ignored:
        raise UnsupportedError(
            f"DistributedDataParallel leaves {named(ignored)} out of its reduction ({_cause(inner)}), so each rank "
            "has gradients of its own there, for which no common norm, vote or sum is right. Freeze them before "
            "(requires_grad_(False)), let DistributedDataParallel reduce them like the others, or train with the empty "
            "tg.Plan(), which leaves everything to it."
        )
    known = inner._get_ddp_logging_data().get("num_parameter_tensors")  # private; at least since torch 1.8
    trainable = len(trainable_parameters(inner.module))
    if isinstance(known, int) and 0 < known < trainable:
        raise UnsupportedError(
            f"{trainable} parameters of the model require gradients, and DistributedDataParallel reduces {known}: the "
            "others were unfrozen or added after it was built, so ranks would train them apart. Unfreeze and add "
            "parameters first, and wrap the model then."
        )


def ignored_parameters(model: DistributedDataParallel) -> list[str]:
    """Return the names of trainable parameters that DistributedDataParallel was told to ignore.

    As its reducer reads them: a name has its module in it (so that of a root's own parameter matches nothing), and a
    tied parameter is reduced if any of its names is.
    """
    ignored = model.parameters_to_ignore
    reduced = {
        id(parameter)
        for prefix, module in model.module.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if f"{prefix}.{name}" not in ignored
    }
    return [name for name, parameter in trainable_parameters(model.module).items() if id(parameter) not in reduced]


def _cause(model: DistributedDataParallel) -> str:
    delayed = getattr(model, "_delay_all_reduce_params", None)  # private; what the argument of torch 2.x leaves behind
    return "delay_all_reduce_named_params" if delayed else "_set_params_and_buffers_to_ignore_for_model"


def _check_no_wrapper_inside(model: DistributedDataParallel) -> None:
    for name, module in model.module.named_modules():
        is_wrapper = is_fsdp2(module) or isinstance(module, DistributedDataParallel | DataParallel)
        if is_wrapper and any(parameter.requires_grad for parameter in module.parameters()):
            raise UnsupportedError(
                f"{name!r} inside the DistributedDataParallel module is in {type(module).__name__} as well: its "
                "gradients would be summed by both, or by groups of other ranks. Use one wrapper for the whole model."
            )
