"""Float32 sums of low-precision gradients.

1024 equal bfloat16 gradients summed in bfloat16 reach 37 % of their sum; so float16 and bfloat16 gradients are moved
into a float32 buffer after each micro-batch. Float32 and float64 gradients stay where autograd adds them up.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tightgrad.core.errors import UnsupportedError

LOW_PRECISION = (torch.float16, torch.bfloat16)


class GradientBuffer:
    """Adds up gradients by parameter name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: dict[str, Tensor] = {}
        self._forget_sums()

    @property
    def absorbs(self) -> bool:
        """Tell whether `absorb` may have something to do in this window."""
        return bool(self._absorbed)

    def absorb(self) -> None:
        """Add low-precision gradients to the buffer, and take them away; to be called after each backward."""
        for name, parameter in self._absorbed.items():
            grad = parameter.grad
            if grad is None or grad.dtype not in LOW_PRECISION:
                continue
            if name in self._sums:
                self._sums[name].add_(grad)
            else:
                self._sums[name] = grad.float()
            parameter.grad = None

    def grads(self) -> dict[str, Tensor]:
        """Return the window's gradients so far, float32 or float64, without the parameters that have none.

        Raises:
            UnsupportedError: a gradient is sparse.
        """
        grads = {}
        for name, parameter in self._parameters.items():
            grad = self._sums.get(name, parameter.grad)
            if grad is None:
                continue
            if grad.is_sparse:
                raise UnsupportedError(
                    f"the gradient of {name!r} is sparse; build its layer with sparse=False, and take Adam in place of "
                    "SparseAdam."
                )
            grads[name] = grad
        return grads

    def sums(self) -> dict[str, Tensor]:
        """Return copies of the float32 sums."""
        return {name: tensor.clone() for name, tensor in self._sums.items()}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Put back what `sums` gave."""
        self._sums = {name: tensor.clone() for name, tensor in sums.items()}

    def scale_(self, factor: float) -> None:
        """Multiply the float32 sums."""
        for tensor in self._sums.values():
            tensor.mul_(factor)

    def deliver(self, grads: Mapping[str, Tensor]) -> None:
        """Put final gradients where the optimizer looks for them, in the parameters' dtype; other parameters have
        none.
        """
        for name, parameter in self._parameters.items():
            grad = grads.get(name)
            if parameter.grad is not grad:
                parameter.grad = grad if grad is None or grad.dtype == parameter.dtype else grad.to(parameter.dtype)

    def clear(self) -> None:
        """Forget all gradients of the window."""
        self._forget_sums()
        for parameter in self._parameters.values():
            parameter.grad = None

    def _forget_sums(self) -> None:
        self._sums = {}
        self._absorbed = {name: p for name, p in self._parameters.items() if _may_be_low(p)}


def _may_be_low(parameter: nn.Parameter) -> bool:
    """Whether autograd may give it a gradient of low precision."""
    dtype = getattr(parameter, "grad_dtype", parameter.dtype)  # torch 2.10; None lets any through
    return dtype is None or dtype in LOW_PRECISION


def zero_gradient(parameter: nn.Parameter) -> Tensor:
    """Return zeros for a parameter that only other ranks used, in the dtype that gradients are summed in."""
    dtype = torch.float32 if parameter.dtype in LOW_PRECISION else parameter.dtype
    return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
