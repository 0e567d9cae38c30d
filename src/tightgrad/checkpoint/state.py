"""What the pipeline remembers between steps; only an applied step changes it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from tightgrad.checkpoint.open_window import OpenWindow
from tightgrad.core.errors import StateMismatchError
from tightgrad.core.types import MODEL, Slot, State

STATE_VERSION = 1


class PipelineState:
    """Holds counters, and the tensors of the methods: slot -> parameter name -> tensor.

    Args:
        shapes: shape of the tensors kept for each parameter; None takes the parameter's own.

    Attributes:
        step: number of applied steps.
        consecutive_skips: steps skipped since the last applied one.
        micro_batches: of a window, where the loop has set it; None takes the plan's.
        slots: the methods' tensors, different on each rank.
        open_window: the window that a loaded checkpoint was taken in, until it is entered again.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self._shapes = shapes
        self.step = 0
        self.consecutive_skips = 0
        self.micro_batches: int | None = None
        self.slots: State = {}
        self.open_window: OpenWindow | None = None

    def applied(self, slots: State | None = None) -> None:
        """Count a step, and keep what its methods remember."""
        self.step += 1
        self.consecutive_skips = 0
        if slots is not None:
            self.slots = slots

    def state_dict(self, open_window: OpenWindow | None = None, num_consumed: int = 0) -> dict[str, Any]:
        """Return plain tensors (copies) and numbers."""
        slots = {slot: {name: tensor.clone() for name, tensor in values.items()} for slot, values in self.slots.items()}
        return {
            "version": STATE_VERSION,
            "step": self.step,
            "consecutive_skips": self.consecutive_skips,
            "micro_batches": self.micro_batches,
            "slots": slots,
            "num_consumed": num_consumed,
            "open_window": asdict(open_window) if open_window else None,
        }

    def load_state_dict(
        self, state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], known: Mapping[str, Slot]
    ) -> None:
        """Restore a state, after checking all of it.

        Raises:
            StateMismatchError: another version, missing keys, or tensors that fit neither plan nor parameters.
        """
        if state.get("version") != STATE_VERSION:
            raise StateMismatchError(
                f"pipeline state of version {state.get('version')!r} cannot be read; this is version {STATE_VERSION}."
            )
        missing = {"step", "consecutive_skips", "slots", "num_consumed", "open_window"} - set(state)
        if missing:
            raise StateMismatchError(f"pipeline state has no {', '.join(sorted(missing))}; was it cut short?")
        for key in ("step", "consecutive_skips", "num_consumed"):
            check_count(key, state[key])
        saved = state["slots"]
        if not isinstance(saved, Mapping):
            raise StateMismatchError(f"slots of a pipeline state is a {type(saved).__name__}, not a mapping.")
        shapes = self._shapes or {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        slots = {slot: _restored(slot, values, parameters, shapes, known) for slot, values in saved.items()}
        window = state["open_window"]
        open_window = OpenWindow.from_saved(window, parameters) if window is not None else None
        self.step, self.consecutive_skips = state["step"], state["consecutive_skips"]
        self.micro_batches = state.get("micro_batches")  # which earlier states do not have
        self.slots = slots
        self.open_window = open_window


def check_count(key: str, value: object) -> None:
    """Raise `StateMismatchError` unless a value of a state is a number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise StateMismatchError(f"{key} of a pipeline state is {value!r}, not a number of 0 or more; was it edited?")


def _restored(
    slot: str,
    values: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    shapes: Mapping[str, tuple[int, ...]],
    known: Mapping[str, Slot],
) -> dict[str, Tensor]:
    if slot not in known:
        raise StateMismatchError(
            f"{slot!r} was saved, but this plan remembers {', '.join(known) or 'nothing'}; resume with the plan that "
            "was saved."
        )
    given: object = values
    if not isinstance(given, Mapping) or not all(isinstance(value, Tensor) for value in given.values()):
        raise StateMismatchError(f"{slot} of a pipeline state holds something else than tensors; was it edited?")
    if known[slot].of_model and MODEL not in values:
        raise StateMismatchError(f"{slot} of a pipeline state is empty; was it cut short?")
    for name, tensor in values.items():
        _check_fits(known[slot], name, tensor, shapes)
    return {name: tensor.to(_device(name, parameters), copy=True) for name, tensor in values.items()}


def _device(name: str, parameters: Mapping[str, nn.Parameter]) -> torch.device:
    return parameters[name].device if name in parameters else next(iter(parameters.values())).device


def _check_fits(slot: Slot, name: str, tensor: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if (name == MODEL) != slot.of_model or (name != MODEL and name not in shapes):
        raise StateMismatchError(
            f"{slot.name} of {name!r} was saved, but the model has no trainable parameter of that name."
        )
    shape = shapes.get(name, ())
    if not slot.fits(tensor, shape):
        expected = f"the parameter has {shape}" if slot.like_parameter else f"expected {slot.shape or ''} {slot.dtype}"
        raise StateMismatchError(
            f"{slot.name} of {name!r} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}, {expected}; resume "
            "with the plan and the model that were saved."
        )
    held = slot.values(tensor)
    if name != MODEL and (bool(held.isnan().any()) or (slot.like_parameter and not bool(held.isfinite().all()))):
        raise StateMismatchError(
            f"{slot.name} of {name!r} holds inf or NaN, which would never leave it; resume from an older checkpoint."
        )
