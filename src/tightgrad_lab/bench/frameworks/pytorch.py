"""PyTorch: `torch.nn.utils`."""

from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
from torch import Tensor, nn
from torch.nn import utils

from tightgrad_lab.bench.frameworks.framework import NAMES, Framework, Operation, Tree


def framework() -> Framework:
    """This process's torch."""
    return Framework(
        NAMES["torch"],
        version("torch"),
        put=lambda tensors: [tensor.clone() for tensor in tensors],
        get=lambda results: [_plain(result) for result in results],
        wait=lambda results: None,
        operations={
            "norm": Operation(
                "torch.nn.utils.get_total_norm",
                lambda grads, weights, bound: [utils.get_total_norm(grads)],
                "two meshes, or sharded and plain tensors together; sparse gradients",
            ),
            "global_norm_torch": Operation(
                "torch.nn.utils.clip_grad_norm_",
                _norm_clip(2.0),
                "two meshes, or sharded and plain together; tied weights count twice; sparse gradients",
            ),
            "global_norm_1": Operation(
                "torch.nn.utils.clip_grad_norm_(norm_type=1)",
                _norm_clip(1.0),
                "as with norm_type=2",
            ),
            "value": Operation(
                "torch.nn.utils.clip_grad_value_",
                _value_clip,
                "sparse gradients",
            ),
        },
    )


def _plain(result: Tensor) -> Tensor:
    return result.detach()


def _parameters(grads: Tree) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.empty_like(grad)) for grad in grads]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    return parameters


def _norm_clip(norm_type: float) -> Callable[[Tree, Tree, float], Sequence[Tensor]]:
    def run(grads: Tree, weights: Tree, bound: float) -> Sequence[Tensor]:
        norm = utils.clip_grad_norm_(_parameters(grads), bound, norm_type)
        return [*grads, norm]

    return run


def _value_clip(grads: Tree, weights: Tree, bound: float) -> Sequence[Tensor]:
    utils.clip_grad_value_(_parameters(grads), bound)
    return list(grads)
