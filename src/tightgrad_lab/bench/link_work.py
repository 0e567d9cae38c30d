"""The training that `tightgrad bench link` times, under every way to sum gradients: one generator each, which takes an
optimizer step whenever it is asked. Same weights, same batches, same optimizer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from tightgrad.plan.local_updates import LocalUpdates
from tightgrad_lab.bench.framing import FramedCollective
from tightgrad_lab.common import byte_model

Steps = Iterator["tg.StepRecord | None"]
"""Yields TightGrad's record of the step, None where something else ran."""
Wrap = Callable[[nn.Module], nn.Module]
POWERSGD_START = 2  # torch's own hook refuses to begin earlier


@dataclass(frozen=True)
class Work:
    """A byte-level transformer and how it is trained.

    Args:
        width: of the model.
        layers: of the model.
        batch_size: pieces of text on each rank, in each micro-batch.
        micro_batches: of a step; the same in every row.
    """

    width: int = 384
    layers: int = 4
    batch_size: int = 24
    micro_batches: int = 1

    def model(self) -> nn.Module:
        """The same weights each time."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return byte_model.ByteTransformer(self.width, self.layers)

    @property
    def num_parameters(self) -> int:
        """Of the model."""
        with torch.device("meta"):
            model = byte_model.ByteTransformer(self.width, self.layers)
        return sum(parameter.numel() for parameter in model.parameters())

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW, fused where torch has it."""
        return torch.optim.AdamW(model.parameters(), byte_model.LEARNING_RATE, fused=True)

    def batches(self) -> Iterator[Tensor]:
        """This rank's micro-batches, without end."""
        for index in count():
            generator = torch.Generator().manual_seed(index * dist.get_world_size() + dist.get_rank())
            yield byte_model.batch(self.batch_size, generator)


def by_hand(work: Work, wrap: Wrap) -> Steps:
    """What a careful user writes without a library."""
    model = wrap(work.model())
    optimizer = work.optimizer(model)
    batches = work.batches()
    is_ddp = isinstance(model, DistributedDataParallel)
    while True:
        for position in range(work.micro_batches):
            if is_ddp:
                model.require_backward_grad_sync = position == work.micro_batches - 1  # type: ignore[assignment]
            (byte_model.loss(model, next(batches)) / work.micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield None


def with_tightgrad(work: Work, plan: tg.Plan, collective: FramedCollective) -> Steps:
    """A plan on a DDP model."""
    model = DistributedDataParallel(work.model())
    pipe = tg.attach(model, work.optimizer(model), plan, collective=collective)
    for window in pipe.windows(work.batches()):
        for batch in window:
            pipe.backward(byte_model.loss(model, batch))
        yield pipe.step()


def with_local_updates(work: Work, updates: LocalUpdates, collective: FramedCollective) -> Steps:
    """Every rank for itself, and an outer step every so often: its record is that step's."""
    model = work.model()
    optimizer = work.optimizer(model)
    outer = tg.attach_local(model, updates, collective=collective)
    batches = work.batches()
    while True:
        for _ in range(work.micro_batches):
            (byte_model.loss(model, next(batches)) / work.micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield outer.step()


def bare(model: nn.Module) -> nn.Module:
    """Every rank trains for itself: nothing is communicated."""
    return model


def dense(model: nn.Module) -> nn.Module:
    """DDP as it comes: float32, overlapped with backward."""
    return DistributedDataParallel(model)


def torch_fp16(model: nn.Module) -> nn.Module:
    """DDP with torch's float16 hook."""
    wrapped = DistributedDataParallel(model)
    wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
    return wrapped


def torch_powersgd(model: nn.Module) -> nn.Module:
    """DDP with torch's PowerSGD hook, which compresses from the first step that it allows."""
    wrapped = DistributedDataParallel(model)
    state = powerSGD_hook.PowerSGDState(
        None, matrix_approximation_rank=4, start_powerSGD_iter=POWERSGD_START, warm_start=True, use_error_feedback=True
    )
    wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    return wrapped


PEERS: dict[str, Wrap] = {
    "no communication": bare,
    "dense": dense,
    "torch fp16 hook": torch_fp16,
    "torch PowerSGD": torch_powersgd,
}
