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

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tightgrad.adapters.parts.fsdp2_grads import (
    HeldGrad,
    fill_unused,
    make_dtypes_equal,
    moves_itself,
    unsharded_grad,
    unsharded_param,
)
from tightgrad.adapters.parts.fsdp2_torch import fsdp_modules, is_fsdp2, reduces_unused, set_reduces_unused
from tightgrad.adapters.parts.fsdp2_torch import param_groups as param_groups
from tightgrad.adapters.parts.fsdp2_use import look_before_post_backward, stop_looking
from tightgrad.adapters.parts.grads import copy_grads, put_grads, scale_grads_
from tightgrad.adapters.parts.memory import free_nbytes
from tightgrad.adapters.parts.names import trainable_parameters
from tightgrad.adapters.parts.placement import check_is_mesh_of
from tightgrad.collectives import TorchCollective
from tightgrad.collectives.backends import backend_name
from tightgrad.collectives.traffic import all_reduce_nbytes, reduce_scatter_nbytes
from tightgrad.core.errors import CommunicationError, UnsupportedError, UsageError
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

AUTO_SHARE = 0.25


class FSDP2Adapter:
    """A module under `fully_shard`, on a one-dimensional mesh or a two-dimensional one (HSDP).

    Args:
        model: the root module.
        sync: "last", "every", or "auto": "last" if unsharded gradients fill at most a quarter of the free memory.
        collective: all data-parallel ranks; None takes the default process group.

    Attributes:
        norm_reaches_all: whether a norm of the gradients is one sum over all ranks (not under HSDP).

    Raises:
        UnsupportedError: parameters are not all sharded by FSDP2 and by nothing else, the mesh leaves ranks out,
            gradients would be added up in low precision, or this version of torch is built otherwise.
    """

    reduces = True
    every_rank_runs = True
    waits_in_forward = True
    remembered_shapes: Mapping[str, tuple[int, ...]] | None = None

    def __init__(self, model: nn.Module, sync: str, collective: Collective | None = None) -> None:
        assert is_fsdp2(model)
        self.model: FSDPModule = model
        self.parameters = trainable_parameters(model)
        self.collective: Collective = collective or TorchCollective()
        self.divisor = self.collective.world_size
        self._names = {id(parameter): name for name, parameter in self.parameters.items()}
        self._check_mesh()
        self.sync = sync
        self._synced = 0
        self._nbytes_of_sync: dict[int | None, int] = {}
        self._used: set[str] = set()
        self._has_noted = False
        self._unheard: Callable[[], Tensor] | None = None
        self._gradient_sync: bool | None = None
        self._is_reduced = False
        self.norm_reaches_all = all(
            isinstance(p, DTensor) and p.device_mesh.ndim == 1 for p in self.parameters.values()
        )
        self._modules = fsdp_modules(model)
        self._fsdp_params = self._find_fsdp_params()
        self.moves_gradients = moves_itself(self._fsdp_params.values())
        self._held = {name: HeldGrad(param) for name, param in self._fsdp_params.items()}
        self._restored: Set[str] = frozenset()
        self._fills_unused = not reduces_unused(self._modules)
        set_reduces_unused(self._modules, True)
        for module in self._modules:
            for group in param_groups(module):
                params = [(self._names[id(p.sharded_param)], p) for p in group.fsdp_params if self._is_trained(p)]
                look_before_post_backward(group, partial(self._before_reduction, params))

    @property
    def holds_back(self) -> bool:
        """Under "last", until the last backward: torch 2.15 shows such gradients in `parameter.grad` already."""
        return self._gradient_sync is False

    def connect(self) -> None:
        """Choose between "last" and "every"."""
        if self.sync == "auto":
            self.sync = self._choose_sync()
        if self.sync == "last":
            self._check_accumulates_in_float32()

    def _before_reduction(self, params: list[tuple[str, FSDPParam]]) -> None:
        """Note which parameters of a unit the backward that ends has reached, and make its gradients ready."""
        self._has_noted = True
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
        """Which parameters of `grads` some rank is known here to have used in this window: those that a backward here
        has reached, and those whose sum over ranks is not 0. Another rank used them, or this one before a checkpoint.

        Args:
            grads: this rank's gradients after the last backward; zeros for parameters that no rank used.

        Raises:
            UnsupportedError: this torch ends a backward otherwise than expected, so that nothing is known of use.
        """
        if self._is_reduced and not self._has_noted:
            raise UnsupportedError(
                f"torch {torch.__version__} ends a backward under FSDP2 without FSDPParamGroup.post_backward, where "
                "this library sees which parameters were used; take torch 2.9 to 2.14, or DistributedDataParallel."
            )
        unknown = [name for name in grads if name not in self._used]
        if not unknown:
            return self._used
        nonzero = torch.stack([local_part(grads[name]).any() for name in unknown]).tolist()
        return self._used.union(compress(unknown, nonzero))

    def used_anywhere(self, known: Set[str]) -> Set[str]:
        """Which parameters any rank used in this window. Collective: every rank must call it.

        Every rank says what it knows of; one that knows of all parameters does not wait for the others.

        Args:
            known: what `known_used` gave.
        """
        used = [name in known for name in self.parameters]
        flags = torch.tensor(used, dtype=torch.uint8)
        answer = self.collective.start_all_reduce_(flags.to(self.collective.control_device), "max")
        if all(used):
            self._unheard = answer
            return known
        return {name for name, flag in zip(self.parameters, answer().tolist(), strict=True) if flag}

    def _settle(self) -> None:
        """Leave nothing under way; what went wrong is raised by the next collective."""
        answer, self._unheard = self._unheard, None
        if answer is not None:
            with suppress(CommunicationError):
                answer()

    def _check_mesh(self) -> None:
        for name, parameter in self.parameters.items():
            assert isinstance(parameter, DTensor)
            if parameter.device_mesh.size() != self.collective.world_size:
                raise mesh_is_smaller(name, parameter, self.collective.world_size)
            check_is_mesh_of(name, parameter.device_mesh, self.collective)

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
        is_small = torch.tensor(unsharded <= AUTO_SHARE * free_nbytes(device), dtype=torch.int32)
        fits = self.collective.all_reduce_(is_small.to(self.collective.control_device), "min")  # free memory differs
        return "last" if bool(fits) else "every"

    def _find_fsdp_params(self) -> dict[str, FSDPParam]:
        """FSDP2's own objects, by parameter name; those of frozen parameters are left out."""
        params = [param for module in self._modules for group in param_groups(module) for param in group.fsdp_params]
        return {self._names[id(p.sharded_param)]: p for p in params if self._is_trained(p)}

    def _is_trained(self, param: FSDPParam) -> bool:
        return id(param.sharded_param) in self._names

    def begin_window(self) -> None:
        """Do nothing: FSDP2 gathers in its forward."""

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
        yield
        self._is_reduced |= is_last
        if is_last and self.sync == "last":
            self._check_restored_are_taken()

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
        """The unsharded parameters, which the forward has made."""
        unsharded = (unsharded_param(fsdp_param) for fsdp_param in self._fsdp_params.values())
        return [leaf for leaf in unsharded if leaf is not None]

    @property
    def counts_writes(self) -> bool:
        """Not on the CPU, where `torch._foreach_*` writes into a DTensor, or into its local part, uncounted."""
        return next(iter(self.parameters.values())).device.type != "cpu"

    def gradients(self) -> Iterable[tuple[str, Tensor | None]]:
        """The shards' gradients, their local parts, and the two places of unsharded gradients."""
        for name, parameter in self.parameters.items():
            # torch 2.15 puts there a tensor of a class of its own for what is not reduced yet, which is held below.
            grad = parameter.grad if type(parameter.grad) is DTensor else None
            yield name, grad
            yield name, None if grad is None else local_part(grad)  # a write into it is not counted in the other
        for name, fsdp_param in self._fsdp_params.items():
            leaf = None if self.moves_gradients else unsharded_param(fsdp_param)
            yield name, self._held[name].get()
            yield name, None if leaf is None else leaf.grad

    def accumulated(self) -> Grads:
        """Copies of the shards' gradients ("every") or of the unsharded ones ("last").

        Raises:
            UsageError: the window's last backward has reduced the unsharded ones.
        """
        if self.sync == "every":
            grads = copy_grads(self.parameters)
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
        self._settle()
        self._used = set(grads)
        self._has_noted = False
        if self._gradient_sync is False:  # a window was not finished
            self.model.set_reshard_after_backward(True, recurse=False)
            self.model.reshard()
        self._gradient_sync = None  # the user may have set it since
        self._is_reduced = False
        if self.sync == "every":
            put_grads(
                self.parameters, {name: like_sharded(self.parameters[name], grad) for name, grad in grads.items()}
            )
            return
        self._restored = grads.keys()
        for name, held_grad in self._held.items():
            held_grad.put(grads[name].clone() if name in grads else None)

    def scale_accumulated_(self, factor: float) -> None:
        """Multiply the shards' gradients ("every") or the unsharded ones ("last")."""
        if self.sync == "every":
            scale_grads_(self.parameters, factor)
            return
        for held_grad in self._held.values():
            grad = held_grad.get()
            if grad is not None:
                grad.detach().mul_(factor)

    def leave_window(self) -> None:
        """Nothing to do: `restore_accumulated` clears what is left."""

    def release(self) -> None:
        """Let FSDP2 average at every backward, as after `fully_shard`."""
        for module in self._modules:
            module.set_requires_gradient_sync(True, recurse=False)
            for group in param_groups(module):
                stop_looking(group)
        set_reduces_unused(self._modules, False)

    def sent_nbytes(self) -> int:
        """A reduce-scatter of all gradients (and under HSDP an all-reduce of the shards) for each synchronised
        backward; the traffic of parameters is not counted.
        """
        return self.wrapper_nbytes()

    def wrapper_nbytes(self, num_replicas: int | None = None) -> int:
        """The same; `num_replicas` is how many nodes FSDP2 itself sums over, None is all there are."""
        synced, self._synced = self._synced, 0
        if num_replicas not in self._nbytes_of_sync:
            self._nbytes_of_sync[num_replicas] = self._count_nbytes(num_replicas)
        return synced * self._nbytes_of_sync[num_replicas]

    def _count_nbytes(self, num_replicas: int | None) -> int:
        nbytes = 0
        for fsdp_param in self._fsdp_params.values():
            backend = backend_name(fsdp_param.device, fsdp_param.mesh_info.shard_process_group)
            itemsize = _reduce_dtype(fsdp_param).itemsize
            shard = fsdp_param.padded_sharded_param_size.numel() * itemsize
            num_shards = fsdp_param.mesh_info.shard_mesh_size
            replicas = num_replicas or self.collective.world_size // num_shards
            nbytes += reduce_scatter_nbytes(shard * num_shards, num_shards, backend)
            nbytes += all_reduce_nbytes(shard, replicas)
        return nbytes


def mesh_is_smaller(name: str, parameter: DTensor, world_size: int) -> UnsupportedError:
    """Return the error for a model whose mesh has fewer ranks than are to train it."""
    size = parameter.device_mesh.size()
    return UnsupportedError(
        f"{name!r} lies on a mesh of {size} ranks of {world_size}, and only these {size} would sum its gradient. If "
        f"these {size} ranks train this model alone, pass attach(..., collective=tg.collectives.TorchCollective("
        "mesh.get_group())). If each such mesh is a node with a copy of one model, pass attach(..., collective="
        "tg.collectives.TorchCollective()) and add compress=tg.Compress(...) to the plan, which then runs between "
        "nodes; or call fully_shard with a two-dimensional mesh of all ranks (HSDP)."
    )


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def like_sharded(parameter: nn.Parameter, local: Tensor) -> Tensor:
    """A tensor sharded as `parameter` is, of which `local` is this rank's part."""
    assert isinstance(parameter, DTensor)
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _reduce_dtype(fsdp_param: FSDPParam) -> torch.dtype:
    policy = fsdp_param.mp_policy
    return policy.reduce_dtype or policy.param_dtype or fsdp_param.sharded_param.dtype
