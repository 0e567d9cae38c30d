"""Training loops on this rank, written with PyTorch alone and with a pipeline; bodies of processes."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg

State = dict[str, Tensor]
STEPS = 4


class NormNet(nn.Module):
    """Has buffers (BatchNorm) and dropout-free layers, so that two runs can be bitwise equal."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.first(x)))).squeeze(-1)


def data(rank: int, num_batches: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + rank)
    return [torch.randn(4, 5, generator=generator) for _ in range(num_batches)]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch.sum(dim=1)).square().mean()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def torch_loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor], micro_batches: int = 1
) -> None:
    """The common loop: each loss over K, `no_sync` on all but the last."""
    for start in range(0, len(batches), micro_batches):
        window = batches[start : start + micro_batches]
        for position, batch in enumerate(window):
            last = position == len(window) - 1
            with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
                (loss_of(model, batch) / micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()


def pipe_loop(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Tensor], plan: tg.Plan) -> None:
    pipe = tg.attach(model, optimizer, plan)
    for window in pipe.windows(batches):
        for batch in window:
            pipe.backward(loss_of(model, batch))
        pipe.step()


def state_of(model: nn.Module) -> State:
    module = model.module if isinstance(model, DistributedDataParallel) else model
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def run_both(
    wrap: Callable[[nn.Module], nn.Module], make_optimizer: Callable[..., Any], plan: tg.Plan, micro_batches: int
) -> tuple[State, State]:
    """Weights and buffers after a few steps of either loop, from the same start."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    batches = data(rank, STEPS * micro_batches)
    theirs, ours = wrap(NormNet()), wrap(NormNet())
    torch_loop(theirs, make_optimizer(theirs), batches, micro_batches)
    pipe_loop(ours, make_optimizer(ours), batches, plan)
    return state_of(theirs), state_of(ours)


DDP_OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
    "broadcast_buffers=False": {"broadcast_buffers": False},
}
PLANS = {
    "empty": (tg.Plan(), 1),
    "dense K=1": (tg.Plan(accumulate=tg.Accumulate(micro_batches=1)), 1),
    "dense K=3": (tg.Plan(accumulate=tg.Accumulate(micro_batches=3)), 3),
    "explicit K=1": (tg.Plan(accumulate=tg.Accumulate(micro_batches=1), compress=tg.Compress()), 1),
    "explicit K=3": (tg.Plan(accumulate=tg.Accumulate(micro_batches=3), compress=tg.Compress()), 3),
    "loose clip": (tg.Plan(clip=tg.clip.GlobalNorm(1e9)), 1),
}


def run_ddp_against_torch(optimizers_in_turn: bool) -> dict[tuple[str, str, str], tuple[State, State]]:
    results = {}
    for row, (option, arguments) in enumerate(DDP_OPTIONS.items()):
        for column, (plan_name, (plan, micro_batches)) in enumerate(PLANS.items()):
            if option == "static_graph" and (micro_batches > 1 or plan.compress is not None):
                continue  # refused: tests/distributed/test_attach.py
            both = [sgd, adamw]
            for make_optimizer in [both[(row + column) % 2]] if optimizers_in_turn else both:
                results[option, plan_name, make_optimizer.__name__] = run_both(
                    lambda module, arguments=arguments: DistributedDataParallel(module, **arguments),
                    make_optimizer,
                    plan,
                    micro_batches,
                )
    return results


def run_without_batches_on_rank_0() -> tuple[State, str]:
    """Rank 0's loader is empty, the model has buffers, and DDP would like to broadcast them from rank 0.

    Returns:
        The weights in the explicit mode, and the error where DDP reduces.
    """
    batches = data(dist.get_rank(), 3) if dist.get_rank() else []
    accumulate = tg.Accumulate(micro_batches=2)
    model = DistributedDataParallel(NormNet())
    pipe_loop(model, sgd(model), batches, tg.Plan(accumulate=accumulate, compress=tg.Compress()))
    weights = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    model = DistributedDataParallel(NormNet())
    try:
        pipe_loop(model, sgd(model), batches, tg.Plan(accumulate=accumulate))
    except tg.UsageError as error:
        return weights, str(error)
    return weights, ""
