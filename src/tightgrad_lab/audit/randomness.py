"""Random numbers that do not depend on when they are drawn, so that a loop and its reference compute the same loss.

Dropout is switched off where it is asked for as such; whatever else draws (stochastic depth, noise, sampling) gets the
same numbers for the same shape, each time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd  # torch 2.9 to 2.14: the base of all kinds, without a public name
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tightgrad_lab.audit.terms import follow

SEED = 20
_BY_NAME = {
    F.dropout: "p",
    F.dropout1d: "p",
    F.dropout2d: "p",
    F.dropout3d: "p",
    F.alpha_dropout: "p",
    F.feature_alpha_dropout: "p",
    F.multi_head_attention_forward: "dropout_p",
}
_PLACES = {
    function: (name, list(signature(function).parameters).index(name))  # type: ignore[arg-type]
    for function, name in _BY_NAME.items()
} | {
    F.scaled_dot_product_attention: ("dropout_p", 4),
    torch.dropout: ("p", 1),
    torch.dropout_: ("p", 1),
    torch.native_dropout: ("p", 1),
    torch.alpha_dropout: ("p", 1),
    torch.feature_dropout: ("p", 1),
    torch.feature_alpha_dropout: ("p", 1),
}
"""Which argument is the share that is dropped, by function: its name and its place."""


@contextmanager
def fixed_randomness() -> Iterator["Draws"]:
    """Everything inside draws the same numbers for the same shape; dropout drops nothing. Yields how often it draws."""
    draws = Draws()
    with _NoDropout(), draws:
        yield draws


def without_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout rate of a module to 0; those that a forward passes on are seen to by `fixed_randomness`."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
            module.dropout = 0.0
    return model


class _NoDropout(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run a function of torch, with 0 for what it drops."""
        named = dict(kwargs or {})
        if func in _PLACES:
            name, place = _PLACES[func]
            if len(args) > place:
                args = (*args[:place], 0.0, *args[place + 1 :])
            else:
                named[name] = 0.0
        result = func(*args, **named)
        follow(getattr(func, "__name__", ""), args, named, result)
        return result


class Draws(TorchDispatchMode):
    """Gives each operator that draws the same numbers for the same shape.

    Attributes:
        count: how often something was drawn.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator; one that draws random numbers starts from the same seed each time."""
        named = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or func.overloadpacket is torch.ops.aten.randperm:
            return func(*args, **named)
        self.count += 1
        named.pop("generator", None)
        with torch.random.fork_rng([]):
            torch.manual_seed(SEED)
            return _in_float32(func, args, named)


def _in_float32(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Drawn in float32 whatever the dtype, since float64 would get other numbers."""
    first = args[0] if args and isinstance(args[0], Tensor) else None
    if first is not None and first.dtype != torch.float32 and first.is_floating_point():
        drawn = func(first.float(), *args[1:], **{**named, "dtype": torch.float32} if "dtype" in named else named)
        if not isinstance(drawn, Tensor):
            return func(*args, **named)
        if func._schema.is_mutable:
            return first.copy_(drawn)
        return drawn.to(named.get("dtype") or first.dtype)
    dtype = named.get("dtype")
    if any(argument.name == "dtype" for argument in func._schema.arguments):
        dtype = dtype or torch.get_default_dtype()
    if first is None and dtype is not None and dtype.is_floating_point:
        return func(*args, **{**named, "dtype": torch.float32}).to(dtype)
    return func(*args, **named)
