"""Parameters that no optimizer holds: those that a loss reaches all the same, and copies of the held ones that move."""

import weakref
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tightgrad.core.living import instances

MOST_NODES = 50_000
ELEMENTS = 16
LOADED = "_tightgrad_loaded"
"""Set on parameters that `load_state_dict` has filled: leaving them out of an optimizer may be meant."""
Print = tuple[float, ...]


class Bystanders:
    """What the optimizers do not hold."""

    def __init__(self) -> None:
        self._reached: dict[int, tuple[weakref.ref[Any], Print]] = {}
        self._copies: list[tuple[weakref.ref[Any], Print]] = []

    def reach(self, roots: Any, held: Container[int]) -> None:
        """Write down what a loss reaches and no optimizer holds so far."""
        given = [roots] if isinstance(roots, Tensor) else list(roots or ())
        for one in _leaves(one.grad_fn for one in given if isinstance(one, Tensor)):
            if isinstance(one, nn.Parameter) and id(one) not in held and id(one) not in self._reached:
                self._reached[id(one)] = (weakref.ref(one), _print(one))

    def find_copies(self, held: dict[int, tuple[int, Tensor]]) -> None:
        """Look for parameters that may be an average of the held ones: as many, of the same shapes."""
        left = Counter(tuple(one.shape) for _, one in held.values())
        least = (left.total() + 1) // 2
        found = []
        for one in instances(nn.Parameter):
            if id(one) not in held and left[tuple(one.shape)] > 0:
                left[tuple(one.shape)] -= 1
                found.append((weakref.ref(one), _print(one)))
        self._copies = found if len(found) >= max(1, least) else []

    def copies_moved(self) -> bool:
        """Whether most of the copies have changed since this was asked last."""
        now = [(known, _print(one)) for known, _ in self._copies if (one := known()) is not None]
        moved = sum(new != old for (_, new), (_, old) in zip(now, self._copies, strict=False))
        whole = len(now) == len(self._copies)
        self._copies = now
        return whole and 2 * moved > len(now)

    def unheld(self, held: Container[int]) -> dict[str, bool]:
        """Names of parameters that losses reach and nobody moves, optimizer or script -> were they loaded?

        Those that require no gradient any more are left out.
        """
        left = {}
        for number, (known, before) in self._reached.items():
            one = known()
            if one is not None and number not in held and one.requires_grad and _print(one) == before:
                left[number] = one
        found = names(left) if left else {}
        loaded = _of_hub() if left else set()
        return {found[number]: hasattr(one, LOADED) or number in loaded for number, one in left.items()}


def names(chosen: Iterable[int]) -> dict[int, str]:
    """Id of a parameter -> its longest name in a module, or its number where it is in none."""
    found: dict[int, str] = {}
    for module in instances(nn.Module):
        for name, one in module.named_parameters():
            if len(name) > len(found.get(id(one), "")):
                found[id(one)] = name
    return {number: found.get(number, f"number {place}") for place, number in enumerate(chosen)}


def _of_hub() -> set[int]:
    """Parameters of Hugging Face models that were not made from a configuration alone."""
    modules = [one for one in instances(nn.Module) if getattr(one, "name_or_path", "")]
    return {id(parameter) for module in modules for parameter in module.parameters()}


def _leaves(roots: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors at the end of a graph that gather gradients."""
    ahead = [one for one in roots if one is not None]
    seen: set[Any] = set()
    while ahead and len(seen) < MOST_NODES:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        ahead += [one for one, _ in node.next_functions if one is not None]


def _print(tensor: Tensor) -> Print:
    """Some elements; none of a tensor that has no storage now."""
    if tensor.is_meta or tensor.is_sparse or not tensor.untyped_storage().size():
        return ()
    with torch.no_grad():
        flat = tensor.detach().reshape(-1)
        return tuple(flat[:: max(1, flat.numel() // ELEMENTS)][:ELEMENTS].double().tolist())
