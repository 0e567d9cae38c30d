"""Keeps a loop's own calls away from a GradScaler that a pipeline drives, and finds one that it was not given."""

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from torch import Tensor
from torch.amp import GradScaler

from tightgrad.accumulate.loss_graph.terms import terms
from tightgrad.core.errors import UsageError
from tightgrad.core.living import instances
from tightgrad.pipeline.premises.ownership import Ownership

LEAVE_OUT: Mapping[str, str] = {
    "scale": "write pipe.backward(loss) with the loss as it is",
    "unscale_": "drop the call; Plan(clip=...) and attach(..., before_clip=edit) get gradients that are unscaled",
    "step": "write pipe.step() in its place",
    "update": "drop the call",
}


class _Guarded:
    """Comes before the class of a scaler that is driven, whose class it gives back to copies and to pickle."""

    guarded: type
    owners: "weakref.WeakSet[Ownership]"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return object.__new__, (self.guarded,), self.__getstate__()


def guard_scaler(scaler: GradScaler, ownership: Ownership) -> None:
    """Make `scale`, `unscale_`, `step` and `update` errors as long as the pipeline owns its gradients."""
    kind: Any = type(scaler)
    if not issubclass(kind, _Guarded):
        methods = {name: _refusing(name, getattr(kind, name)) for name in LEAVE_OUT}
        parts = {"guarded": kind, "owners": weakref.WeakSet(), "__module__": kind.__module__, **methods}
        kind = type(kind.__name__, (_Guarded, kind), parts)
        scaler.__class__ = kind
    kind.owners.add(ownership)


def _refusing(name: str, own: Any) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(owner.is_held for owner in self.owners):
            _refuse(name)
        return own(self, *args, **kwargs)

    return method


def _refuse(name: str) -> NoReturn:
    raise UsageError(
        f"scaler.{name}() was called, but this GradScaler was given to attach(..., scaler=scaler): the pipeline "
        f"scales, unscales and updates, and a second time would be wrong. Nothing has been changed: {LEAVE_OUT[name]}. "
        "A model without a pipeline takes a GradScaler of its own; pipe.close() gives this one back."
    )


def check_unscaled(losses: Iterable[Tensor]) -> None:
    """Raise `UsageError` if a loss was multiplied by the scale of a GradScaler. Objects in memory are looked through
    (0.1 s), which only a loss that was multiplied by a tensor of one number asks for.
    """
    factors = [factor for loss in losses for term in terms(loss) for factor in term.scale or ()]
    scales = {factor.address for factor in factors if factor.address}
    if not scales:
        return
    for one in instances(GradScaler):
        scale = getattr(one, "_scale", None)  # private (torch 2.9 to 2.14); a torch without it is not asked
        if isinstance(scale, Tensor) and scale.data_ptr() in scales:
            raise UsageError(
                f"the loss was multiplied by a GradScaler's scale, {float(scale):g}, which this pipeline knows nothing "
                "of: nobody would divide the gradients by it. Write attach(..., scaler=scaler) and pipe.backward(loss) "
                "with the loss as it is; scaler.scale, unscale_, step and update fall away."
            )
