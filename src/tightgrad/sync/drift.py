"""Do ranks hold the same? 64-bit fingerprints of weights and the like, compared over ranks.

Ranks that hold the same numbers have the same fingerprints, whatever the device: it is a sum of integers. The weights
of ranks that once differed stay different, so comparing before the first step, and now and then, is enough.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tightgrad.adapters.parts.fingerprint import fingerprint as fingerprint
from tightgrad.core.errors import RankMismatchError
from tightgrad.core.notices import first_few
from tightgrad.core.placement import shard_axes
from tightgrad.core.protocols import Collective
from tightgrad.core.types import Grads

_MOST_NAMED = 5


def has_replicas(parameters: Mapping[str, nn.Parameter], world_size: int) -> bool:
    """Tell whether any parameter is held by more than one rank."""
    return any(_num_shards(parameter) < world_size for parameter in parameters.values())


def check_same(
    parameters: Mapping[str, nn.Parameter], kept: Mapping[str, Sequence[Tensor]], step: int, collective: Collective
) -> None:
    """Compare weights, and what optimizers have kept of them, before a step. Collective: every rank must call it.

    Raises:
        RankMismatchError: on every rank; names parameters and ranks.
    """
    held: dict[str, Sequence[Tensor]] = {f"the weight of {name!r}": [one] for name, one in parameters.items()}
    held |= {f"the optimizer's state of {name!r}": tensors for name, tensors in kept.items()}
    found = _apart(held, parameters, collective)
    if found:
        raise RankMismatchError(
            f"before step {step} the ranks do not hold the same numbers: {first_few(found, _MOST_NAMED, '; ')}. They "
            "would add up gradients of different models, and stay different. No rank applies this step. Usually only "
            "some ranks have loaded a checkpoint, edited weights, or drawn new ones after the model was wrapped: do it "
            "on every rank, from one file or with one seed, or send rank 0's weights to all, `for tensor in "
            "model.state_dict().values(): torch.distributed.broadcast(tensor, 0)`."
        )


def check_no_drift(grads: Grads, parameters: Mapping[str, nn.Parameter], step: int, collective: Collective) -> None:
    """Compare gradients and weights. Collective: every rank must call it.

    Raises:
        RankMismatchError: on every rank; names parameters and ranks that differ from the first rank with the same part.
    """
    held: dict[str, Sequence[Tensor]] = {
        f"the gradient of {name!r}": [grads[name]] if name in grads else [] for name in parameters
    }
    held |= {f"the weight of {name!r}": [one] for name, one in parameters.items()}
    found = _apart(held, parameters, collective)
    if found:
        raise RankMismatchError(
            f"at step {step} the ranks have drifted apart (compared with the first rank that holds the same): "
            f"{first_few(found, _MOST_NAMED, '; ')}. No rank applies this step. Look for what only some ranks do: "
            "weights changed by hand, an optimizer with other settings, a seed, other hardware; then load one "
            "checkpoint on all ranks."
        )


def _apart(
    held: Mapping[str, Sequence[Tensor]], parameters: Mapping[str, nn.Parameter], collective: Collective
) -> list[str]:
    """Say what differs, and on which ranks, from the first rank that holds the same part of all parameters."""
    part = torch.tensor(_part(parameters), dtype=torch.int64, device="cpu")
    rows = [sum(map(fingerprint, tensors), start=torch.zeros_like(part)) for tensors in held.values()]
    mine = torch.stack([row.to(collective.control_device) for row in (part, *rows)])
    table = collective.all_gather(mine).cpu()
    reference = [_first_alike(table, rank) for rank in range(len(table))]
    apart = (table != table[reference])[:, 1:]
    return [
        f"{what} differs on rank {', '.join(map(str, ranks))}"
        for what, column in zip(held, apart.unbind(1), strict=True)
        if (ranks := column.nonzero().view(-1).tolist())
    ]


def _first_alike(table: Tensor, rank: int) -> int:
    return int((table[:, 0] == table[rank, 0]).nonzero()[0])


def _num_shards(parameter: Tensor) -> int:
    number = 1
    for mesh, axis in shard_axes(parameter):
        number *= mesh.size(axis)
    return number


def _part(parameters: Mapping[str, nn.Parameter]) -> int:
    """A number for which part of each parameter this rank holds."""
    parts = [[mesh.get_local_rank(axis) for mesh, axis in shard_axes(p)] for p in parameters.values()]
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "little")
