"""What the pipeline remembers between steps. Changed only by an applied step."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tightgrad.core.errors import StateMismatchError
from tightgrad.core.types import State

STATE_VERSION = 1


class PipelineState:
    """Counters, and the tensors of the methods: slot -> parameter name -> tensor.

    Attributes:
        step: number of applied steps.
        consecutive_skips: steps skipped since the last applied one.
        slots: the methods' tensors, different on each rank.
    """

    def __init__(self) -> None:
        self.step = 0
        self.consecutive_skips = 0
        self.slots: State = {}

    def applied(self, slots: State | None = None) -> None:
        """Count a step, and keep what its methods remember."""
        self.step += 1
        self.consecutive_skips = 0
        if slots is not None:
            self.slots = slots

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors (copies) and numbers."""
        slots = {slot: {name: tensor.clone() for name, tensor in values.items()} for slot, values in self.slots.items()}
        return {
            "version": STATE_VERSION,
            "step": self.step,
            "consecutive_skips": self.consecutive_skips,
            "slots": slots,
        }

    def load_state_dict(self, state: Mapping[str, Any], parameters: Mapping[str, nn.Parameter]) -> None:
        """Restore, after checking all of it.

        Raises:
            StateMismatchError: another version, missing keys, or tensors that do not fit the parameters.
        """
        if state.get("version") != STATE_VERSION:
            raise StateMismatchError(
                f"pipeline state of version {state.get('version')!r} cannot be read; this is version {STATE_VERSION}."
            )
        missing = {"step", "consecutive_skips", "slots"} - set(state)
        if missing:
            raise StateMismatchError(f"pipeline state has no {', '.join(sorted(missing))}; was it cut short?")
        slots: dict[str, dict[str, Tensor]] = {}
        for slot, values in state["slots"].items():
            for name, tensor in values.items():
                _check_fits(slot, name, tensor, parameters)
            slots[slot] = {name: tensor.to(parameters[name].device, copy=True) for name, tensor in values.items()}
        self.step = int(state["step"])
        self.consecutive_skips = int(state["consecutive_skips"])
        self.slots = slots


def _check_fits(slot: str, name: str, tensor: Tensor, parameters: Mapping[str, nn.Parameter]) -> None:
    if name not in parameters:
        raise StateMismatchError(
            f"{slot} of {name!r} was saved, but the model has no trainable parameter of that name."
        )
    if tensor.shape != parameters[name].shape:
        raise StateMismatchError(
            f"{slot} of {name!r} has shape {tuple(tensor.shape)}, the parameter has {tuple(parameters[name].shape)}."
        )
