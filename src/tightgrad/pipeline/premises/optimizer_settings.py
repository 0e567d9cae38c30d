"""What ranks have to set alike in their optimizers, or their weights part: compared at attach, and in each window.

In a window it travels with the weights of its micro-batches, so that a scheduler that one rank alone has stepped is
told before the next step. Of optimizers that are not torch's own, only learning rates, weight decay, betas and momentum
are looked at then: some keep what they have learned beside these. Nothing on another device is read.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn, optim

_EVERY_WINDOW = ("lr", "weight_decay", "betas", "momentum")
_HOW = {"foreach", "fused", "capturable", "differentiable"}
"""How a step is computed, which ranks on other hardware choose for themselves."""


def described(optimizers: Sequence[optim.Optimizer], parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Return what ranks compare at attach, by what it is called in an error.

    Args:
        optimizers: of the pipeline.
        parameters: of the model, by name.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    held = [
        (type(one).__name__, [[names.get(id(p), "?") for p in group["params"]] for group in one.param_groups])
        for one in optimizers
    ]
    groups = [group for one in optimizers for group in one.param_groups]
    settings = [{key: _plain(value) for key, value in group.items() if key not in ("params", "lr")} for group in groups]
    return {
        "learning rates": repr([_plain(group.get("lr")) for group in groups]),
        "optimizer settings": repr([sorted(one.items()) for one in settings]),
        "optimizers": repr(held),
    }


def kept(optimizers: Sequence[optim.Optimizer], parameters: Mapping[str, nn.Parameter]) -> dict[str, list[Tensor]]:
    """Return what torch's own optimizers have kept of each parameter: the same on all ranks that hold it."""
    states = [one.state for one in optimizers if is_torchs(one)]
    return {
        name: [value for state in states for value in state.get(parameter, {}).values() if isinstance(value, Tensor)]
        for name, parameter in parameters.items()
    }


def in_window(optimizers: Sequence[optim.Optimizer]) -> tuple[float, int]:
    """Return the first learning rate, and a hash of all settings: the same on every rank, or they differ."""
    every = [sorted(one.defaults.keys() - _HOW) if is_torchs(one) else () for one in optimizers]
    keys = [(*_EVERY_WINDOW, *own) for own in every]
    groups = [(group, own) for one, own in zip(optimizers, keys, strict=True) for group in one.param_groups]
    numbers = [number for group, own in groups for number in _numbers(group, own)]
    first = next(iter(numbers), 0.0)
    return first, hash(tuple(numbers))


def is_torchs(optimizer: optim.Optimizer) -> bool:
    """Tell whether an optimizer is one of `torch.optim`, none of which keeps other numbers on other ranks."""
    return type(optimizer).__module__.startswith("torch.optim.")


def _numbers(group: Mapping[str, Any], keys: Iterable[str]) -> Iterator[float]:
    for key in keys:
        value = group.get(key)
        if isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() == 1:
            value = value.item()
        for number in value if isinstance(value, tuple | list) else (value,):
            if isinstance(number, int | float) and number == number:  # the hash of NaN differs from object to object
                yield float(number)


def _plain(value: Any) -> Any:
    """The value if it is a number or several; else its type's name: a text may be the name of this rank's device."""
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else tuple(value.shape)
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value if value is None or isinstance(value, bool | int | float) else type(value).__name__
