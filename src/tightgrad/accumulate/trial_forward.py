"""Forwards that are run only to look at their loss: what they compute with is seen, and nothing is left of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # torch 2.9 to 2.14: the base of all kinds, without a public name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tightgrad.accumulate.buffer import LOW_PRECISION
from tightgrad.core.errors import TightGradError
from tightgrad.core.global_rng import GlobalRng
from tightgrad.core.memory import is_out_of_memory

T = TypeVar("T")

FINE = 1e-4  # float32 on a CPU: the sum of a piece and those of its halves are rounded otherwise
ON_A_GPU = 1e-3  # TF32, and other kernels for another number of samples
COARSE = 1e-2  # float16 and bfloat16 inside the forward, or compiled code, into which nobody looks


class ForwardWatch(TorchDispatchMode):
    """Takes note of the operators that run inside of it.

    Attributes:
        normalises_batch: whether one was batch normalisation by the batch's own statistics.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._is_low = self._is_on_gpu = False
        self.normalises_batch = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operator; take note of what it is and of the dtype of what it made."""
        result = func(*args, **(kwargs or {}))
        if "batch_norm" in func.__name__ and not func.__name__.startswith("batch_norm_elemt"):
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | dict(kwargs or {})
            self.normalises_batch |= bool(given.get("training", given.get("train", False)))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._is_low |= leaf.dtype in LOW_PRECISION
                self._is_on_gpu |= leaf.is_cuda
        return result

    def tolerance(self, model: nn.Module) -> float:
        """Return the relative difference that rounding alone may make."""
        return COARSE if self._is_low or is_compiled(model) else ON_A_GPU if self._is_on_gpu else FINE


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Leave no trace of the forwards inside. BatchNorm, which is told of elsewhere, uses what it has learned."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    generators = GlobalRng.now()
    try:
        for module, _ in modes:
            if isinstance(module, _BatchNorm):
                module.training = False
        yield
    finally:
        generators.restore()
        torch.clear_autocast_cache()  # weights that were cast without a graph, where autocast is around all of it
        for module, mode in modes:
            module.training = mode
        for buffer, before in buffers:
            buffer.detach().copy_(before)


def without_graph(forward: Callable[[], T]) -> T:
    """Run a forward without a graph; with one if it cannot do without.

    A loss that differentiates on its way (a gradient penalty, the inner step of MAML) raises where autograd is off. It
    runs again from the same random numbers; the caller detaches what it gives, so that the graph is freed.
    """
    generators = GlobalRng.now()
    try:
        with torch.no_grad():
            return forward()
    except RuntimeError as error:  # what autograd raises
        if isinstance(error, TightGradError) or is_out_of_memory(error):
            raise
    finally:
        torch.clear_autocast_cache()  # weights that were cast without a graph
    generators.restore()
    with torch.enable_grad():
        return forward()


def is_compiled(model: nn.Module) -> bool:
    """Tell whether a module, or one inside of it, runs compiled."""
    # torch.compile's wrapper and Module.compile's attribute (torch 2.9 to 2.14).
    marks = ("_orig_mod", "_compiled_call_impl")
    return any(getattr(module, mark, None) is not None for module in model.modules() for mark in marks)


def own_statistics(model: nn.Module) -> list[str]:
    """Name the layers that normalise by the statistics of the batch, in the mode that they are in."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)
    ]
