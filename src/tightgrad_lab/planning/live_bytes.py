"""How many bytes of tensors are alive, and were at most, on any device: seen where operators make them.

What an operator uses inside itself, and what an allocator keeps in reserve, is not seen.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Held around a piece of work: counts the storages that its operators make, until they are freed.

    Attributes:
        alive: bytes now.
        peak: most bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self._known: weakref.WeakKeyDictionary[UntypedStorage, None] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator; take note of what it made."""
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in given:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: UntypedStorage) -> None:
        if storage in self._known:
            return
        nbytes = storage.nbytes()
        self._known[storage] = None
        weakref.finalize(storage, self._freed, nbytes)
        self.alive += nbytes
        self.peak = max(self.peak, self.alive)

    def _freed(self, nbytes: int) -> None:
        self.alive -= nbytes


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
