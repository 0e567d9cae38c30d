"""Notices that weights were written between two backwards of one window."""

from collections.abc import Iterable, Mapping

from torch import nn

from tightgrad.core.notices import named, warn

MOST_NAMED = 5


class WeightWatch:
    """Warns, once, when gradients of one window are taken at different weights.

    torch counts writes into a tensor, but not those through `.data`. Weights that were swapped for others and put back
    are told as well: a copy of all values would be needed to see that they are the same. An embedding with `max_norm`
    writes to its weight in every forward, which is its purpose.

    Args:
        parameters: of the model, by name.
        modules: of the model.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], modules: Iterable[nn.Module]) -> None:
        renormed = {id(module.weight) for module in modules if getattr(module, "max_norm", None) is not None}
        self._parameters = {name: p for name, p in parameters.items() if id(p) not in renormed}
        self._versions: list[int] | None = None
        self._has_warned = False

    def remember(self) -> None:
        """Take the weights as they are after a backward for those of the window."""
        if not self._has_warned:
            self._versions = [parameter._version for parameter in self._parameters.values()]

    def forget(self) -> None:
        """Begin a window: before its first backward weights may change."""
        self._versions = None

    def look(self, stacklevel: int) -> None:
        """Warn if weights were written since `remember`."""
        if self._versions is None:
            return
        now = [parameter._version for parameter in self._parameters.values()]
        written = [name for name, old, new in zip(self._parameters, self._versions, now, strict=True) if old != new]
        if not written:
            return
        self._has_warned, self._versions = True, None
        warn(
            "weights were written between two backwards of one window: "
            f"{named(written, MOST_NAMED)}. Its gradients belong to different weights, and their sum is not that of "
            "one batch. Usually another optimizer's step() (give all optimizers to attach() in a list), "
            "load_state_dict() or an edit of weights stands inside `for batch in window:`; move it behind pipe.step(). "
            "Only writes are counted, not values: if every weight was put back as it was before the next backward, as "
            "after an evaluation with averaged (EMA) weights, the sum is right; evaluate behind pipe.step(), or ignore "
            "this TightGradWarning.",
            stacklevel + 1,
        )
