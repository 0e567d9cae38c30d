"""What this library needs of torch's FSDP2 beyond its public interface.

Nothing of `torch.distributed.fsdp` is imported before a model under `fully_shard` is attached: whoever has one has
imported it already, and everyone else does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from tightgrad.adapters.parts.fsdp2_grads import moves_itself, unsharded_param
from tightgrad.adapters.parts.torch_private import check_has, unknown_torch
from tightgrad.core.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
    from typing_extensions import TypeIs

    NamedParams: TypeAlias = list[tuple[str, FSDPParam]]

WHAT = "a model under fully_shard (FSDP2)"

# Private in torch 2.9 to 2.14: the groups of parameters that are reduced together, and what describes each parameter.
_OF_GROUP = ("fsdp_params", "post_backward")
_OF_PARAM = ("sharded_param", "mesh_info", "mp_policy", "padded_sharded_param_size", "unsharded_accumulated_grad")


def is_fsdp2(module: nn.Module) -> TypeIs[FSDPModule]:  # type: ignore[narrowed-type-not-subtype]
    """Return whether a module is under `fully_shard`. It is known by the name of its class, which needs no import."""
    return any(
        kind.__name__ == "FSDPModule" and kind.__module__.startswith("torch.distributed.fsdp")
        for kind in type(module).__mro__
    )


def sharded_root(model: nn.Module) -> nn.Module:
    """Return the outermost module under `fully_shard` if all that is trained is in it, else the model itself."""
    root = next((module for module in model.modules() if is_fsdp2(module)), model)
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    return root if trained <= set(map(id, root.parameters())) else model


def fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    """Return all modules under `fully_shard`."""
    return [module for module in model.modules() if is_fsdp2(module)]


def param_groups(module: FSDPModule) -> list[FSDPParamGroup]:
    """Return what a module under `fully_shard` reduces together: one group a mesh.

    Raises:
        UnsupportedError: this version of torch keeps the groups elsewhere.
    """
    state: Any = module._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    if not hasattr(state, "_fsdp_param_group"):
        raise unknown_torch("FSDPModule has no _get_fsdp_state()._fsdp_param_groups", WHAT)
    group = state._fsdp_param_group  # torch up to 2.11 has at most one
    return [] if group is None else [group]


def trained_units(model: nn.Module, names: Mapping[int, str]) -> list[tuple[FSDPModule, FSDPParamGroup, NamedParams]]:
    """Return what reduces together: module, group, and FSDP2's own objects for the parameters that are trained, with
    their names and in the order in which they are reduced.

    Args:
        model: under `fully_shard`.
        names: of the trained parameters, by identity.
    """
    return [
        (module, group, [(names[id(p.sharded_param)], p) for p in group.fsdp_params if id(p.sharded_param) in names])
        for module in fsdp_modules(model)
        for group in param_groups(module)
    ]


def forget_iteration(model: Any) -> None:
    """Let FSDP2 forget a forward without a backward, or either of them that has raised, and what it was about to sum.

    Left alone, it takes the next backward for a part of the one that has raised, and reduces nothing any more.

    Args:
        model: the root module.
    """
    params = fsdp_params(model)
    for leaf in () if moves_itself(params) else map(unsharded_param, params):
        if leaf is not None:
            leaf.grad = None  # of a backward that has raised before it was reduced
    state: Any = model._get_fsdp_state()  # private in torch 2.9 to 2.14
    if not state._is_root:  # None before the first forward; False in a larger model, whose iteration is not ours to end
        model.reshard()
        for module in fsdp_modules(model):  # a root below one whose own forward nobody calls, as a LightningModule's
            if module._get_fsdp_state()._is_root:
                forget_iteration(module)
        return
    if hasattr(model, "reset_iter_state"):  # torch 2.13 and newer; what follows is its equal for 2.9 to 2.12
        model.reset_iter_state()
        return
    for module in fsdp_modules(model):
        parts: list[Any] = [module._get_fsdp_state(), *param_groups(module)]
        for part in parts:
            part._training_state = type(part._training_state).IDLE
        module.reshard()  # does nothing in the state of a forward
    state._state_ctx.iter_forward_root = None
    state._state_ctx.post_backward_final_callback_queued = False
    state._comm_ctx.post_forward_order.clear()


def reduces_unused(modules: Iterable[FSDPModule]) -> bool:
    """Return whether this torch can reduce parameters that a rank did not use as zeros: 2.13 and newer."""
    return all(hasattr(module, "set_reduce_scatter_unused_params") for module in modules)


def set_reduces_unused(modules: Iterable[FSDPModule], enable: bool) -> None:
    """Tell torch to do so, or not to, where it can."""
    for module in modules:
        if hasattr(module, "set_reduce_scatter_unused_params"):
            module.set_reduce_scatter_unused_params(enable, recurse=False)


def check_divisor(modules: Iterable[FSDPModule], divisor: int) -> None:
    """Raise `UsageError` if a module divides what it sums over ranks by another number than `divisor`."""
    for module in modules:
        for group in param_groups(module):
            factor = getattr(group, "gradient_divide_factor", None)  # private in torch 2.9 to 2.15; None divides by all
            if factor is not None and factor != divisor:
                raise UsageError(
                    f"set_gradient_divide_factor({factor:g}) was called on the model, and the pipeline counts on sums "
                    f"over ranks that are divided by {divisor}: gradients would be {divisor / factor:g} times what "
                    "they should be. Leave the call out: the pipeline divides by the weight of the whole window itself "
                    '(for losses that are sums, with Accumulate(loss_reduction="sum")).'
                )


def check_internals(model: nn.Module) -> None:
    """Raise if FSDP2's own objects lack what the adapters read.

    Raises:
        UnsupportedError: names the version of torch and what is missing.
    """
    for module in fsdp_modules(model):
        for group in param_groups(module):
            check_has(group, _OF_GROUP, WHAT)
            for param in group.fsdp_params:
                check_has(param, _OF_PARAM, WHAT)


def fsdp_params(model: nn.Module) -> list[FSDPParam]:
    """Return FSDP2's own objects for all parameters, frozen ones too."""
    return [p for module in fsdp_modules(model) for group in param_groups(module) for p in group.fsdp_params]


def look_before_post_backward(group: FSDPParamGroup, look: Callable[[], None]) -> None:
    """Call `look` from now on before a group's `post_backward`, and no longer what an earlier adapter has set.

    FSDP2 calls that method (private in torch 2.9 to 2.14) once a backward; it takes a unit's gradients away and reduces
    them, after which it cannot be seen which ones a backward has reached. What is noted and set right there is needed
    for right results, and no public hook is called between a unit's last gradient and its reduction.

    Raises:
        UnsupportedError: this version of torch does not let a method of its own be replaced.
    """
    stop_looking(group)
    try:
        group.post_backward = partial(_look_first, look, group.post_backward)  # type: ignore[method-assign]
    except AttributeError:
        raise unknown_torch(f"{type(group).__name__}.post_backward cannot be replaced", WHAT) from None


def stop_looking(group: FSDPParamGroup) -> None:
    """Take back what `look_before_post_backward` did."""
    held = group.post_backward
    if isinstance(held, partial) and held.func is _look_first:
        del group.post_backward  # the class's own method comes to light again


def _look_first(look: Callable[[], None], post_backward: Callable[..., None], *unused: Any) -> None:
    look()
    post_backward(*unused)
