"""FSDP2 (`fully_shard`), which averages gradients itself and leaves each rank a shard of them.

Two ways to accumulate, and neither is always right. "last" keeps unsharded gradients until the window's last
backward: one reduce-scatter a window, at the memory of all gradients on every rank. It also keeps the root's own
parameters unsharded from one micro-batch to the next, which are gathered once a window then; where memory is at its
fullest, between forward and backward, they are there anyway. "every" reduces each micro-batch and adds up shards: K
times the traffic, and no unsharded gradients are held.

Every rank must run the forward of the same units, which gathers their parameters. Within a unit, ranks may use
different parameters: those that a rank did not use are reduced as zeros, and those that no rank used have no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tightgrad.accumulate.trial_forward import is_compiled
from tightgrad.adapters.fsdp2_hand_over import UnitHandOver, sum_by_themselves
from tightgrad.adapters.parts.fsdp2_grads import (
    HeldGrad,
    fill_unused,
    make_dtypes_equal,
    moves_itself,
    unsharded_grad,
    unsharded_param,
)
from tightgrad.adapters.parts.fsdp2_torch import (
    check_divisor,
    forget_iteration,
    fsdp_modules,
    is_fsdp2,
    look_before_post_backward,
    reduces_unused,
    set_reduces_unused,
    stop_looking,
    trained_units,
)
from tightgrad.adapters.parts.placement import check_whole_mesh, like_sharded
from tightgrad.adapters.parts.same_units import SameUnits
from tightgrad.adapters.plain import Adapter
from tightgrad.collectives import TorchCollective
from tightgrad.collectives.backends import backend_name
from tightgrad.collectives.traffic import all_reduce_nbytes, reduce_scatter_nbytes
from tightgrad.core.errors import UnsupportedError, UsageError
from tightgrad.core.memory import free_nbytes
from tightgrad.core.placement import local_part
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    from tightgrad.adapters.parts.fsdp2_torch import NamedParams

AUTO_SHARE = 0.25


class FSDP2Adapter(Adapter):
    """Connects a module under `fully_shard`, on a one-dimensional mesh or a two-dimensional one (HSDP).

    Args:
        model: the root module.
        sync: "last", "every", or "auto": "last" if unsharded gradients fill at most a quarter of the free memory. With
            `hand_over` it has to be "last".
        collective: all data-parallel ranks; None takes the default process group.
        hand_over: hands units over before FSDP2 has summed them over all ranks; None lets it average.

    Raises:
        UnsupportedError: parameters are not all sharded by FSDP2 and by nothing else, the mesh leaves ranks out,
            gradients would be added up in low precision, or this version of torch is built otherwise.
    """

    reduces = True
    every_rank_runs = True
    marks_last = True

    def __init__(
        self, model: nn.Module, sync: str, collective: Collective | None = None, hand_over: UnitHandOver | None = None
    ) -> None:
        assert is_fsdp2(model)
        super().__init__(model, collective or TorchCollective())
        self.model: FSDPModule = model
        self.sync = sync
        self.hand_over = hand_over
        if hand_over is None:
            check_whole_mesh(self.parameters, self.collective)
            self.divisor = self.collective.world_size
        else:
            self.remembered_shapes = hand_over.remembered_shapes
        self._synced = 0
        self._used: set[str] = set() if hand_over is None else hand_over.used
        self._has_noted = False
        self._gradient_sync: bool | None = None
        self._is_reduced = False
        self._is_in_forward = self._ran_elsewhere = False
        self._restored: Set[str] = frozenset()
        units = trained_units(model, {id(parameter): name for name, parameter in self.parameters.items()})
        self._modules = fsdp_modules(model)
        self._groups = [group for _, group, _ in units]
        held = set(map(id, self._modules))
        named = {name: module for name, module in model.named_modules() if id(module) in held}
        group_of_ranks = getattr(self.collective, "group", None)
        self._same_units = SameUnits({} if is_compiled(model) else named, group_of_ranks)
        self._fsdp_params = {name: param for _, _, params in units for name, param in params}
        self._held = {name: HeldGrad(param) for name, param in self._fsdp_params.items()}
        self._moves_gradients = moves_itself(self._fsdp_params.values())
        self._fills_unused = not reduces_unused(self._modules)
        set_reduces_unused(self._modules, True)
        for _, group, params in units:
            look_before_post_backward(group, partial(self._before_reduction, params))

    @property
    def waits_in_forward(self) -> bool:
        """Tell that a forward gathers parameters."""
        return True

    @property
    def needs_every_gradient(self) -> bool:
        """Tell whether units are handed over, in a layout that takes in all parameters that were trainable at first."""
        return self.hand_over is not None

    @property
    def moves_gradients(self) -> bool:
        """Tell whether torch itself moves gradients from one `.grad` to another (2.15)."""
        return self._moves_gradients

    @property
    def counts_writes(self) -> bool:
        """Tell whether torch counts writes: on the CPU it does not count those of `torch._foreach_*` into shards."""
        parameters = self.parameters.values()
        return next(iter(parameters)).device.type != "cpu" or all(p.grad is None for p in parameters)

    @property
    def holds_back(self) -> bool:
        """Tell whether "last" waits for the last backward: torch 2.15 shows such gradients in `parameter.grad`."""
        return self._gradient_sync is False

    def begin_window(self) -> None:
        """Take note that the window's forwards are still to come. Raises as `connect` does."""
        check_divisor(self._modules, self.divisor)
        self._same_units.begin_window()

    def take_called_modules(self) -> int | None:
        """Return, once, a hash of the modules under `fully_shard` that were called in the window before."""
        return self._same_units.take_called()

    def forget_window(self, *, is_complete: bool = False) -> None:
        """Tell ranks that are still in a forward, in the first windows. Collective: every rank must call it."""
        self._same_units.leave()

    def connect(self) -> None:
        """Choose between "last" and "every". Collective: every rank must call it.

        Raises:
            UsageError: the model was told to divide gradients by another number than that of its ranks.
        """
        if self.hand_over is None:
            check_divisor(self._modules, self.divisor)
        if self.sync == "auto":
            self.sync = self._choose_sync()
        if self.sync == "last":
            self._check_accumulates_in_float32()

    def _before_reduction(self, params: NamedParams) -> None:
        """Note which parameters of a unit the backward that ends has reached, and make its gradients ready."""
        self._has_noted = True
        self._ran_elsewhere |= self._is_in_forward and any(param.sharded_param.requires_grad for _, param in params)
        for name, param in params:
            if name not in self._used and unsharded_grad(param) is not None:
                self._used.add(name)
            if name in self._restored:
                self._held[name].arrive()
        if self._gradient_sync:
            make_dtypes_equal([param for _, param in params])
            if self._fills_unused:
                fill_unused(param for _, param in params)

    def known_used(self, grads: Grads) -> Set[str]:
        """Return which parameters of `grads` some rank is known here to have used in this window: those that a backward
        here has reached, and those whose sum over ranks is not 0. Another rank used them, or this one before a
        checkpoint.

        Args:
            grads: this rank's gradients after the last backward; zeros for parameters that no rank used.

        Raises:
            UnsupportedError: no backward came through the modules, or this torch ends one otherwise than expected.
        """
        if self._is_reduced and not self._has_noted:
            raise UnsupportedError(
                "no backward of this window went through the FSDP modules, so no parameter has a gradient. The losses "
                "came from something else: a copy of the model, another model, or torch.tensor(loss); compute them "
                f"with the model that attach() was given. If they are its own, torch {torch.__version__} ends a "
                "backward without FSDPParamGroup.post_backward, where this library sees which parameters were used; "
                "take torch 2.9 to 2.14, or DistributedDataParallel."
            )
        unknown = [name for name in grads if name not in self._used]
        if not unknown:
            return self._used
        nonzero = torch.stack([local_part(grads[name]).any() for name in unknown]).tolist()
        return self._used.union(compress(unknown, nonzero))

    def _check_accumulates_in_float32(self) -> None:
        for name, fsdp_param in self._fsdp_params.items():
            reduce = _reduce_dtype(fsdp_param)
            if reduce in (torch.float16, torch.bfloat16):
                raise UnsupportedError(
                    f"{name!r} would add up gradients in {reduce}; pass "
                    "MixedPrecisionPolicy(..., reduce_dtype=torch.float32) to fully_shard, or accumulate with "
                    'sync="every".'
                )

    def _choose_sync(self) -> str:
        unsharded = sum(parameter.numel() * 4 for parameter in self.parameters.values())
        device = next(iter(self.parameters.values())).device
        is_small = torch.tensor(unsharded <= AUTO_SHARE * free_nbytes(device), dtype=torch.int32, device="cpu")
        fits = self.collective.all_reduce_(is_small.to(self.collective.control_device), "min")  # free memory differs
        return "last" if bool(fits) else "every"

    @contextmanager
    def micro_batch(self, index: int, count: int) -> Iterator[None]:
        """Set whether the coming backward reduces, and whether it leaves the root's parameters unsharded."""
        is_last = index == count - 1
        reduces = self.sync == "every" or is_last
        if reduces is not self._gradient_sync:
            for module in self._modules:
                module.set_requires_gradient_sync(reduces, recurse=False)
            self.model.set_reshard_after_backward(reduces, recurse=False)
            self._gradient_sync = reduces
        self._synced += reduces
        self._same_units.begin(is_last=is_last)
        self._is_in_forward, self._ran_elsewhere = True, False
        yield
        self._is_in_forward = False
        if is_last:
            self._same_units.end_window()
        if reduces and any(self._held[name].is_left() for name in self._used):
            raise UsageError(
                "FSDP2 did not reduce the gradients of this micro-batch, so they were not summed over ranks: leave out "
                "set_requires_gradient_sync(False), which the pipeline sets itself."
            )
        self._is_reduced |= is_last
        if is_last and self.sync == "last":
            self._check_restored_are_taken()

    def before_backward(self) -> None:
        """Make sure that no rank is still in its forward, in the first windows.

        Raises:
            UnsupportedError: another backward has run in this forward, which FSDP2 takes for the micro-batch's own.
        """
        self._is_in_forward = False
        self._same_units.before_backward()
        if self._ran_elsewhere:
            raise UnsupportedError(
                "a backward has run inside this micro-batch's forward through modules that fully_shard was called on, "
                "as torch.autograd.grad does for a gradient penalty or the inner step of meta-learning. FSDP2 takes it "
                "for the backward of the micro-batch: it reduces gradients that are not there yet, and frees weights "
                "that the micro-batch's own backward needs. Nothing has been stepped. Train with such a loss under "
                "DistributedDataParallel, or as a plain module with collective=tg.collectives.TorchCollective()."
            )

    def after_backward(self) -> None:
        """Take note that ranks may wait for this one before their next forward, in the first windows."""
        self._same_units.after_backward()

    def _check_restored_are_taken(self) -> None:
        left = [name for name in self._restored if self._held[name].is_left()]
        self._restored = frozenset()
        if left and self._has_noted:
            raise UsageError(
                f"{left[0]!r} had a gradient in the checkpoint that was taken in the middle of this window, but no "
                "forward after the resume has used its module, so FSDP2 would drop that gradient. Use every module "
                "that fully_shard was called on in each forward, or resume from a checkpoint between two windows."
            )

    def leaves(self) -> Iterable[Tensor]:
        """Return the unsharded parameters, which the forward has made."""
        unsharded = (unsharded_param(fsdp_param) for fsdp_param in self._fsdp_params.values())
        return [leaf for leaf in unsharded if leaf is not None]

    def gradients(self) -> Iterable[tuple[str, Tensor | None]]:
        """Return the shards' gradients, their local parts, and the two places of unsharded gradients, with names."""
        from torch.distributed.tensor import DTensor  # loads sympy; a model under fully_shard has loaded it

        for name, parameter in self.parameters.items():
            # torch 2.15 puts there a tensor of a class of its own for what is not reduced yet, which is held below.
            grad = parameter.grad if type(parameter.grad) is DTensor else None
            yield name, grad
            yield name, None if grad is None else local_part(grad)  # a write into it is not counted in the other
        for name, fsdp_param in self._fsdp_params.items():
            leaf = None if self._moves_gradients else unsharded_param(fsdp_param)
            yield name, self._held[name].get()
            yield name, None if leaf is None else leaf.grad

    def accumulated(self) -> Grads:
        """Return copies of the shards' gradients ("every") or of the unsharded ones ("last").

        Raises:
            UsageError: the window's last backward has reduced the unsharded ones.
        """
        if self.sync == "every":
            grads = super().accumulated()
            known = self.known_used(grads)
            return {name: local_part(grad) for name, grad in grads.items() if name in known}
        if self._is_reduced:
            raise UsageError(
                "under FSDP2 a checkpoint cannot be taken between a window's last backward and its step(); take it "
                "before the one or after the other."
            )
        held: Grads = {}
        for name, held_grad in self._held.items():
            grad = held_grad.get()
            if grad is not None:
                held[name] = grad.detach().clone()
        return {name: held[name] for name in self.parameters if name in held}

    def restore_accumulated(self, grads: Grads) -> None:
        """Put them back where the next backward adds to them."""
        self._used.clear()  # what hands units over reads the same set
        self._used.update(grads)
        self._has_noted = False
        if self._gradient_sync is not None:  # the window may have been left after a forward, on some ranks the last one
            self.model.set_reshard_after_backward(True, recurse=False)
            forget_iteration(self.model)
        self._gradient_sync = None  # the user may have set it since
        self._is_reduced = False
        if self.sync == "every":
            super().restore_accumulated({n: like_sharded(self.parameters[n], grad) for n, grad in grads.items()})
            return
        self._restored = grads.keys()
        for name, held_grad in self._held.items():
            held_grad.put(grads[name].clone() if name in grads else None)

    def scale_accumulated_(self, factor: float) -> None:
        """Multiply the shards' gradients ("every") or the unsharded ones ("last")."""
        if self.sync == "every":
            super().scale_accumulated_(factor)
            return
        for held_grad in self._held.values():
            grad = held_grad.get()
            if grad is not None:
                grad.detach().mul_(factor)

    def release(self) -> None:
        """Let FSDP2 average at every backward, as after `fully_shard`."""
        if self.hand_over is not None:
            sum_by_themselves(self._modules)
        for module in self._modules:
            module.set_requires_gradient_sync(True, recurse=False)
        for group in self._groups:
            stop_looking(group)
        self._same_units.close()
        set_reduces_unused(self._modules, False)

    def sent_nbytes(self) -> int:
        """Return what FSDP2 itself sent: for each synchronised backward a reduce-scatter of all gradients, and under
        HSDP an all-reduce of the shards. The traffic of parameters is not counted.
        """
        synced, self._synced = self._synced, 0
        return synced * self._nbytes_of_sync

    @cached_property
    def _nbytes_of_sync(self) -> int:
        if self.hand_over is not None and not self.hand_over.leaves_reduce_scatter:
            return 0
        nbytes = 0
        for fsdp_param in self._fsdp_params.values():
            backend = backend_name(fsdp_param.device, fsdp_param.mesh_info.shard_process_group)
            shard = fsdp_param.padded_sharded_param_size.numel() * _reduce_dtype(fsdp_param).itemsize
            num_shards = fsdp_param.mesh_info.shard_mesh_size
            nbytes += reduce_scatter_nbytes(shard * num_shards, num_shards, backend)
            if self.hand_over is None:
                nbytes += all_reduce_nbytes(shard, self.collective.world_size // num_shards)
        return nbytes


def _reduce_dtype(fsdp_param: FSDPParam) -> torch.dtype:
    policy = fsdp_param.mp_policy
    return policy.reduce_dtype or policy.param_dtype or fsdp_param.sharded_param.dtype
