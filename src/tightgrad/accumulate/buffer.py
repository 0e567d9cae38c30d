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
    """Sums of gradients by parameter name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._sums: dict[str, Tensor] = {}
        self._unseen = dict(parameters)

    @property
    def is_settled(self) -> bool:
        """Whether nothing can be left to absorb before the window ends."""
        return not self._unseen

    def absorb(self) -> None:
        """Move low-precision gradients into the buffer; to be called after each backward."""
        for name, parameter in list(self._unseen.items()):
            grad = parameter.grad
            if grad is None:
                continue
            if grad.is_sparse:
                raise UnsupportedError(f"the gradient of {name!r} is sparse; build its layer with sparse=False.")
            if grad.dtype not in LOW_PRECISION:
                del self._unseen[name]  # autograd goes on adding to this very tensor until the window ends
                continue
            if name in self._sums:
                self._sums[name].add_(grad)
            else:
                self._sums[name] = grad.float()
            parameter.grad = None

    def grads(self) -> dict[str, Tensor]:
        """The window's gradients so far, float32 or float64, without the parameters that have none."""
        grads = {}
        for name, parameter in self._parameters.items():
            if name in self._sums:
                grads[name] = self._sums[name]
            elif parameter.grad is not None:
                grads[name] = parameter.grad
        return grads

    def sums(self) -> dict[str, Tensor]:
        """Copies of the float32 sums."""
        return {name: tensor.clone() for name, tensor in self._sums.items()}

    def restore(self, sums: Mapping[str, Tensor]) -> None:
        """Put back what `sums` gave."""
        self._sums = {name: tensor.clone() for name, tensor in sums.items()}

    def deliver(self, grads: Mapping[str, Tensor]) -> None:
        """Put final gradients where the optimizer looks for them, in the parameters' dtype."""
        for name, grad in grads.items():
            parameter = self._parameters[name]
            if parameter.grad is not grad:
                parameter.grad = grad if grad.dtype == parameter.dtype else grad.to(parameter.dtype)

    def clear(self) -> None:
        """Forget all gradients."""
        self._sums.clear()
        self._unseen = dict(self._parameters)
        for parameter in self._parameters.values():
            parameter.grad = None


def zero_gradient(parameter: nn.Parameter) -> Tensor:
    """Zeros for a parameter that only other ranks used, in the dtype that gradients are summed in."""
    dtype = torch.float32 if parameter.dtype in LOW_PRECISION else parameter.dtype
    return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
