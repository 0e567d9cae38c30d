"""The library's side of the grid: what each rank's optimizer was given."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import tightgrad as tg
from parity.problem import Case, Loaders, Net, loss_of, weight_of
from support.capture import Capture
from support.wrapping import full
from tightgrad.collectives import run_threaded
from tightgrad.core.protocols import Collective

Delivered = list[dict[str, Tensor | None] | None]


def run_plain(case: Case, everyone: Loaders, fetch: str) -> list[Delivered]:
    """Plain modules, one thread a rank."""

    def body(collective: Collective) -> Delivered:
        model = Net(case.parameters)
        return deliver(model, model, case, everyone[collective.rank], collective, fetch=fetch)

    return run_threaded(len(everyone), body)


def run_ddp(cases: Sequence[tuple[Case, Loaders]], reducing: str, fetch: str) -> list[Delivered]:
    """All cases on this rank, under DDP; the body of a process.

    Args:
        cases: what to run.
        reducing: "wrapper" lets DDP sum over ranks, "pipeline" is the explicit mode, which needs to know nothing
            about unused parameters, "backward" the pipeline's reduction while DDP's backward goes on.
        fetch: when batches are fetched.
    """
    rank = torch.distributed.get_rank()
    overlap = {"pipeline": "none", "backward": "backward"}
    compress = tg.Compress(overlap=overlap[reducing]) if reducing in overlap else None
    delivered = []
    for case, everyone in cases:
        module = Net(case.parameters)
        sometimes_unused = reducing != "pipeline" and "use" in case.parameters
        model = DistributedDataParallel(module, find_unused_parameters=sometimes_unused)
        delivered.append(deliver(model, module, case, everyone[rank], None, compress, fetch=fetch))
    return delivered


def run_fsdp2(cases: Sequence[tuple[Case, Loaders]], sync: str, fetch: str) -> list[Delivered]:
    """All cases on this rank, under FSDP2; the body of a process. Where all ranks run the branch, or none does, it is
    a unit of its own.
    """
    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    delivered = []
    for case, everyone in cases:
        module = Net(case.parameters)
        if case.parameters not in ("unused_on_one_rank", "used_now_and_then"):
            fully_shard(module.branch, mesh=mesh)
        model = fully_shard(module, mesh=mesh)
        delivered.append(deliver(model, module, case, everyone[rank], None, sync=sync, fetch=fetch))
    return delivered


def deliver(
    model: nn.Module,
    module: nn.Module,
    case: Case,
    loader: list[dict[str, Tensor]],
    collective: Collective | None,
    compress: tg.Compress | None = None,
    sync: str = "auto",
    fetch: str = "window",
) -> Delivered:
    """One entry a window: the gradients at `optimizer.step()`, None for a skipped window."""
    optimizer = Capture(module.named_parameters())
    accumulate = tg.Accumulate(case.micro_batches, loss_reduction=case.reduction, sync=sync, fetch=fetch)
    plan = tg.Plan(accumulate=accumulate, compress=compress)
    pipe = tg.attach(model, optimizer, plan, weight=weight_of, collective=collective)
    delivered: Delivered = []
    for window in pipe.windows(loader):
        for batch in window:
            pipe.backward(loss_of(model, batch, case.reduction))
        record = pipe.step()
        assert record.weight == window.total_weight
        assert (record.skip_reason == "zero_weight") == (window.total_weight == 0)
        delivered.append(None if record.skipped else _whole(optimizer.steps[-1]))
    return delivered


def _whole(grads: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if grad is None else full(grad) for name, grad in grads.items()}
