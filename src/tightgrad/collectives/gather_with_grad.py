"""All ranks' rows of a tensor, with a gradient for those of each: for losses that compare samples across ranks."""

from contextvars import ContextVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from tightgrad.collectives.single import SingleCollective
from tightgrad.collectives.torch_dist import TorchCollective
from tightgrad.core.errors import RankMismatchError, UsageError
from tightgrad.core.protocols import Collective

has_all_rows: ContextVar[bool] = ContextVar("has_all_rows", default=False)


def gather_with_grad(tensor: Tensor, collective: Collective | None = None) -> Tensor:
    """Return the rows of all ranks, in the order of ranks, through which gradients flow back to their own rank.

    Collective: every rank must call it, and run the backward of its loss, where the gradients of all ranks' losses with
    respect to a row are summed. Ranks may have different numbers of rows. `torch.distributed.nn.functional.all_gather`
    does the same for equal numbers, and is deprecated since torch 2.13.

    Under a plan, each rank's loss counts by its weight, as always: where every rank computes the same loss of all rows,
    or the mean over its own rows against all of them, the gradient is that of one big batch.

    Args:
        tensor: of shape (rows on this rank, ...), the further dimensions and the dtype equal on all ranks.
        collective: the ranks; None takes torch's default process group, or this process alone without one.

    Raises:
        RankMismatchError: on every rank, if rows differ in their size or dtype.
        UsageError: a tensor without dimensions has no rows; or the rows are those of all ranks already.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> rows = torch.ones(2, 3, requires_grad=True)
        >>> everyones = tg.gather_with_grad(rows)
        >>> everyones.square().sum().backward()
        >>> everyones.shape, rows.grad[0].tolist()
        (torch.Size([2, 3]), [2.0, 2.0, 2.0])
    """
    if not tensor.dim():
        raise UsageError("a tensor without dimensions has no rows to gather; give it one: tensor.view(1).")
    if has_all_rows.get():
        raise UsageError(
            "the representations that this loss is given are those of all ranks already, so gathering them would count "
            'each several times. Leave gather_with_grad() out, or pass run_cached(..., sees="own_rank").'
        )
    if collective is None:
        has_ranks = dist.is_available() and dist.is_initialized()
        collective = TorchCollective() if has_ranks else SingleCollective()
    gathered: Tensor = _Gather.apply(tensor, collective)  # type: ignore[no-untyped-call]
    return gathered


def gather_rows(tensor: Tensor, collective: Collective) -> tuple[Tensor, list[int]]:
    """Return the rows of all ranks, without a gradient, and how many each has. Collective: every rank must call it.

    Raises:
        RankMismatchError: on every rank, if rows differ in their size or dtype.
    """
    numels = tensor.shape[1:].numel()
    about = torch.tensor([len(tensor), numels, _DTYPES.index(tensor.dtype)], device=collective.control_device)
    told = collective.all_gather(about).tolist()
    if any(row[1:] != told[0][1:] for row in told):
        found = ", ".join(f"rank {rank}: {row[1]} x {_DTYPES[row[2]]}" for rank, row in enumerate(told))
        raise RankMismatchError(f"rows of different ranks cannot be put together ({found}); make them alike.")
    counts = [row[0] for row in told]
    return rows_of_all(tensor, counts, collective), counts


def rows_of_all(tensor: Tensor, counts: list[int], collective: Collective) -> Tensor:
    """Return the rows of all ranks, without a gradient. Collective: every rank must call it.

    Args:
        tensor: of shape (rows on this rank, ...), the further dimensions and the dtype equal on all ranks.
        counts: rows of each rank.
        collective: the ranks.
    """
    held = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    nbytes = held.shape[1:].numel() * held.element_size()
    # As bytes, which every backend sends, whatever the dtype.
    padded = torch.zeros(max(counts), nbytes, dtype=torch.uint8, device=held.device)
    padded[: len(held)] = held.contiguous().view(-1).view(torch.uint8).view(len(held), nbytes)
    parts = zip(collective.all_gather(padded), counts, strict=True)
    rows = torch.cat([part[:count] for part, count in parts])
    gathered = rows.view(-1).view(held.dtype).view(sum(counts), *held.shape[1:])
    return torch.view_as_complex(gathered) if tensor.is_complex() else gathered


_DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor, collective: Collective) -> Tensor:
        gathered, counts = gather_rows(tensor, collective)
        ctx.collective, ctx.start, ctx.count = collective, sum(counts[: collective.rank]), len(tensor)  # type: ignore[attr-defined]
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        summed = ctx.collective.all_reduce_(grads[0].contiguous().clone())  # type: ignore[attr-defined]
        return summed[ctx.start : ctx.start + ctx.count], None  # type: ignore[attr-defined]
