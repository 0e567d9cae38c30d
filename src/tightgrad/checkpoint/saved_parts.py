"""The objects of a training loop that have state: how each gives it, checks a saved one, and takes it up."""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tightgrad.checkpoint.tree import Path, tensors_apart
from tightgrad.core.errors import ConfigError, StateMismatchError
from tightgrad.core.notices import first_few
from tightgrad.core.placement import is_dtensor

_MOST_NAMED = 5


@dataclass(frozen=True)
class Part:
    """Holds what there is to do with one object.

    Args:
        take: gives its state, as it is now: tensors are not copied.
        put: takes up a saved state.
        check: is given a saved state, and raises `StateMismatchError` where it does not fit. Changes nothing.
        likes: gives a function that returns, by a path in the state, the living tensor whose device or mesh the saved
            one is to be read to; None reads it to the CPU.
        is_checked: whether `put` cannot fail after `check`; otherwise it is undone where it does.
    """

    take: Callable[[], Any]
    put: Callable[[Any], Any]
    check: Callable[[Any], None] = lambda saved: None
    likes: Callable[[], Callable[[Path], Tensor | None]] = lambda: lambda path: None
    is_checked: bool = False


def is_kept_apart(value: object) -> bool:
    """Tell whether torch's own checkpoints keep a value as a tensor: dense, of torch's own type, or a DTensor."""
    if not isinstance(value, Tensor):
        return False
    return is_dtensor(value) or (
        type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided and not value.is_quantized
    )


def parameter_names(model: nn.Module) -> dict[int, str]:
    """Return the names of the parameters of a model, without its wrapper, by identity."""
    return {id(parameter): _clean(name) for name, parameter in model.named_parameters()}


def module_part(what: str, module: nn.Module) -> Part:
    """Return the part that is a module, without its wrapper: all of its state, by the names that wrappers share."""

    def take() -> dict[str, Any]:
        return {_clean(name): value for name, value in module.state_dict().items()}

    def check(saved: Mapping[str, Any]) -> None:
        held = take()
        said = [f"{name!r} was saved, and is not there" for name in saved if name not in held]
        said += [f"{name!r} is there, and was not saved" for name in held if name not in saved]
        said += [
            f"{name!r} was saved as {_described(saved[name])}, and is {_described(value)}"
            for name, value in held.items()
            if name in saved and _described(saved[name]) != _described(value)
        ]
        _raise_if(said, what, "build it as it was when it was saved")

    def put(saved: Mapping[str, Any]) -> None:
        names = {_clean(name): name for name in module.state_dict()}
        module.load_state_dict({names[name]: value for name, value in saved.items()})

    def likes() -> Callable[[Path], Tensor | None]:
        held = take().items()
        sharded: dict[Path, Tensor] = {
            (name,): value for name, value in held if isinstance(value, Tensor) and is_dtensor(value)
        }
        return sharded.get

    return Part(take, put, check, likes, is_checked=True)


def optimizer_part(what: str, optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> Part:
    """Return the part that is an optimizer: its state by names of parameters, not by their places in a list.

    Args:
        what: of the loop it is, for messages.
        optimizer: with the groups of `torch.optim`.
        names: of parameters, by identity; others go by their place.
    """
    parameters = {
        names.get(id(parameter), f"parameter {place} of group {number}"): parameter
        for number, group in enumerate(optimizer.param_groups)
        for place, parameter in enumerate(group["params"])
    }
    named = {id(parameter): name for name, parameter in parameters.items()}
    kind = type(getattr(optimizer, "optimizer", optimizer)).__name__  # Accelerate's wrapper has the optimizer inside

    def groups() -> list[list[str]]:
        return [[named[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]

    def numbers(state: Mapping[str, Any]) -> dict[str, Any]:
        given = [number for group in state["param_groups"] for number in group["params"]]
        return dict(zip(chain.from_iterable(groups()), given, strict=True))

    def take() -> dict[str, Any]:
        state = optimizer.state_dict()
        name_of = {number: name for name, number in numbers(state).items()}
        return {
            **state,
            "state": {name_of.get(key, key): value for key, value in state["state"].items()},
            "param_groups": [
                {**group, "params": held} for group, held in zip(state["param_groups"], groups(), strict=True)
            ],
            _KIND: kind,
            _SHAPES: {name: list(parameter.shape) for name, parameter in parameters.items()},
        }

    def check(saved: Mapping[str, Any]) -> None:
        said = [f"a {saved[_KIND]} was saved, and it is a {kind}"] if saved[_KIND] != kind else []
        before, now = [group["params"] for group in saved["param_groups"]], groups()
        if len(before) != len(now):
            said.append(f"{len(before)} parameter groups were saved, and it has {len(now)}")
        for number, (old, new) in enumerate(zip(before, now, strict=False)):
            said += [f"group {number} had {name!r}" for name in old if name not in new]
            said += [f"group {number} had no {name!r}" for name in new if name not in old]
        said += [
            f"{name!r} had the shape {tuple(saved[_SHAPES][name])}, and has {tuple(parameter.shape)}"
            for name, parameter in parameters.items()
            if name in saved[_SHAPES] and tuple(saved[_SHAPES][name]) != tuple(parameter.shape)
        ]
        _raise_if(said, what, "make it as it was when it was saved")

    def put(saved: Mapping[str, Any]) -> None:
        place = numbers(optimizer.state_dict())
        held = {key: value for key, value in saved.items() if key not in (_KIND, _SHAPES)}
        held["state"] = {place.get(name, name): value for name, value in saved["state"].items()}
        held["param_groups"] = [
            {**group, "params": [place[name] for name in group["params"]]} for group in saved["param_groups"]
        ]
        optimizer.load_state_dict(held)
        for name, values in saved["state"].items():
            if name in parameters:
                _restore_dtypes(values, optimizer.state[parameters[name]])

    def like(path: Path) -> Tensor | None:
        parameter = parameters.get(str(path[1])) if len(path) > 1 and path[0] == "state" else None
        return parameter.detach() if parameter is not None and is_dtensor(parameter) else None

    return Part(take, put, check, lambda: like, is_checked=True)


_KIND, _SHAPES = "tightgrad.kind", "tightgrad.shapes"


def object_part(what: str, given: Any, names: Mapping[int, str]) -> Part:
    """Return the part that is an object of any other kind, a module without its wrapper or another optimizer.

    Raises:
        ConfigError: it has no state that could be saved and taken up.
    """
    if isinstance(given, nn.Module):
        return module_part(what, given)
    if isinstance(getattr(given, "param_groups", None), list):
        return optimizer_part(what, given, names)
    for take, put in (("state_dict", "load_state_dict"), ("get_state", "set_state"), ("getstate", "setstate")):
        if callable(getattr(given, take, None)) and callable(getattr(given, put, None)):
            return _part(what, given, getattr(given, take), getattr(given, put))
    if isinstance(given, np.random.Generator):
        generator = given.bit_generator
        return _part(what, given, lambda: generator.state, lambda saved: setattr(generator, "state", saved))
    if isinstance(given, MutableMapping):

        def put_back(saved: Mapping[Any, Any]) -> None:
            given.clear()
            given.update(saved)

        return _part(what, given, lambda: dict(given), put_back)
    raise ConfigError(
        f"{what} is a {type(given).__name__}, which has no state_dict() and load_state_dict(). Give an object that has "
        'them, a random generator, or a dict, which is filled in place: extra={"progress": progress} with '
        'progress = {"epoch": 0}.'
    )


def _part(what: str, given: object, take: Callable[[], Any], put: Callable[[Any], Any]) -> Part:
    kind = type(given).__name__

    def take_named() -> dict[str, Any]:
        return {_KIND: kind, "state": take()}

    def check(saved: Mapping[str, Any]) -> None:
        said = [f"a {saved[_KIND]} was saved, and it is a {kind}"] if saved[_KIND] != kind else []
        _raise_if(said, what, "make it as it was when it was saved")

    def likes() -> Callable[[Path], Tensor | None]:
        return tensors_apart(take_named(), is_kept_apart)[1].get

    return Part(take_named, lambda saved: put(saved["state"]), check, likes)


def _clean(name: str) -> str:
    return name.replace("_orig_mod.", "")


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _restore_dtypes(saved: Any, loaded: Any) -> None:
    """`torch.optim.Optimizer.load_state_dict` casts to the dtype of the parameter, also what was kept in another."""
    for key, value in saved.items() if isinstance(saved, Mapping) else ():
        if isinstance(value, Tensor) and value.dtype != loaded[key].dtype:
            loaded[key] = value.to(loaded[key].device)
        else:
            _restore_dtypes(value, loaded[key])


def _raise_if(said: list[str], what: str, cure: str) -> None:
    if said:
        raise StateMismatchError(
            f"{what} is not the one that was saved: {first_few(said, _MOST_NAMED, '; ')}. To resume, {cure}; nothing "
            "was loaded."
        )
