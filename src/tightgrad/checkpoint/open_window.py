"""The state of a window, for checkpoints that are taken in the middle of one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor, nn

from tightgrad.accumulate import Window
from tightgrad.core.errors import StateMismatchError


@dataclass(frozen=True, slots=True)
class OpenWindow:
    """Holds what has been done of an unfinished window.

    Attributes:
        position: micro-batches whose backward has run.
        weights: of all micro-batches on this rank, for each loss; with `fetch="batch"`, of those that were fetched.
        total_weights: what the gradients are scaled by: N, or with `fetch="batch"` perhaps the expected one.
        grads: gradients that the wrapper or autograd holds, by parameter name.
        sums: float32 sums of low-precision gradients.
        loss_scale: what the losses were multiplied by; None without loss scaling.
        left_out: weight that the loop has taken out of the window on this rank, by loss.
    """

    position: int
    weights: list[dict[str, float]]
    total_weights: dict[str, float]
    grads: Mapping[str, Tensor]
    sums: Mapping[str, Tensor]
    loss_scale: float | None = None
    left_out: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        window: Window[Any],
        total_weights: Mapping[str, float],
        grads: Mapping[str, Tensor],
        sums: Mapping[str, Tensor],
        loss_scale: float | None = None,
        left_out: Mapping[str, float] | None = None,
    ) -> "OpenWindow":
        """Copy the state of a window. Raises the loader's error where that failed in the middle of it."""
        if window.batches.failure is not None:
            raise window.batches.failure
        weights = [dict(row) for row in window.weights]
        return cls(window.backwards, weights, dict(total_weights), grads, sums, loss_scale, dict(left_out or {}))

    @classmethod
    def from_saved(cls, saved: Any, parameters: Mapping[str, nn.Parameter]) -> "OpenWindow":
        """Read the window that a saved state holds.

        Raises:
            StateMismatchError: something is missing, of another kind, or fits none of `parameters`.
        """
        names = {part.name for part in fields(cls)}
        if not isinstance(saved, Mapping) or set(saved) | {"left_out"} != names:  # which earlier states do not have
            found = sorted(map(str, saved)) if isinstance(saved, Mapping) else type(saved).__name__
            raise StateMismatchError(f"the open window of a pipeline state has {found}, expected {sorted(names)}.")
        window = cls(**saved)
        rows: object = window.weights
        if not isinstance(rows, list) or not all(map(_are_weights, [*rows, window.total_weights, window.left_out])):
            raise StateMismatchError("the weights of a pipeline state's open window are no numbers by loss.")
        position: object = window.position
        if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position <= len(rows):
            raise StateMismatchError(
                f"the open window of a pipeline state is at micro-batch {position!r} of {len(rows)}; was it edited?"
            )
        scale: object = window.loss_scale
        if scale is not None and not (isinstance(scale, float) and 0.0 < scale < math.inf):
            raise StateMismatchError(f"the loss scale of a pipeline state's open window is {scale!r}; was it edited?")
        for tensors in (window.grads, window.sums):
            _check_gradients(tensors, parameters)
        return replace(window, grads=_there(window.grads, parameters), sums=_there(window.sums, parameters))

    def check_is(self, window: Window[Any], loss_scale: float | None = None) -> None:
        """Raise `StateMismatchError` unless `window` has the weights and the loss scale of the saved one.

        With `fetch="batch"` this fetches what had been fetched, and raises what the loader raises.
        """
        if loss_scale != self.loss_scale:
            raise StateMismatchError(
                f"the checkpoint was taken in a window with a loss scale of {self.loss_scale}, but it is now "
                f"{loss_scale}; restore the GradScaler's state before the first window, and pass it to attach()."
            )
        if len(window.weights) < len(window) and len(self.weights) > self.position + 1:
            raise StateMismatchError(
                f"the checkpoint was taken after {self.position} micro-batches of a window of {len(self.weights)} that "
                'had all been fetched; go on with Accumulate(fetch="window") until its step.'
            )
        window.batches.reach(len(self.weights) - 1)
        if window.batches.failure is not None:
            raise window.batches.failure
        found = [dict(row) for row in window.weights]
        totals, now = self.total_weights, window.wait_for_total()
        if found == self.weights and totals in (window.expected_weights, now):
            return
        both = min(len(found), len(self.weights))
        if found[:both] == self.weights[:both]:
            raise StateMismatchError(
                f"the checkpoint was taken after {self.position} micro-batches of a window whose losses are divided by "
                f"{totals}, and the window is now one of {len(window)} micro-batches with losses divided by {now}, "
                "although those that both have weigh the same. Go on with the micro_batches (K) of the plan, the "
                "batches and as many ranks as the checkpoint was taken with."
            )
        raise StateMismatchError(
            f"the checkpoint was taken after {self.position} micro-batches of a window with weights "
            f"{self.weights}, but the loader now starts with {found}; start it at the batch number "
            "`num_consumed` of the checkpoint, in the same order and on as many ranks."
        )


def _are_weights(row: object) -> bool:
    return isinstance(row, Mapping) and all(
        isinstance(name, str) and isinstance(value, int | float) and math.isfinite(value) for name, value in row.items()
    )


def _there(tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Where their parameters are: files hold no device."""
    return {name: tensor.to(parameters[name].device) for name, tensor in tensors.items()}


def _check_gradients(tensors: object, parameters: Mapping[str, nn.Parameter]) -> None:
    if not isinstance(tensors, Mapping):
        raise StateMismatchError(f"gradients of a pipeline state are a {type(tensors).__name__}, not a mapping.")
    for name, tensor in tensors.items():
        if name not in parameters:
            raise StateMismatchError(
                f"a gradient of {name!r} was saved in mid-window, but the model has no such trainable parameter."
            )
        parameter = parameters[name]
        shapes = [tuple(parameter.shape)]
        if hasattr(parameter, "to_local"):  # sharded: the adapter saves shards or whole gradients
            shapes.append(tuple(parameter.to_local().shape))
        if not (isinstance(tensor, Tensor) and _is_number_of(tensor, parameter) and tuple(tensor.shape) in shapes):
            found = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise StateMismatchError(f"the gradient of {name!r} saved in mid-window is {found}, not {shapes[0]} float.")


def _is_number_of(tensor: Tensor, parameter: nn.Parameter) -> bool:
    """Whether a gradient is complex where its parameter is, and real where it is not."""
    return tensor.is_complex() if parameter.is_complex() else tensor.is_floating_point()
