"""Have ranks drifted apart? A 64-bit fingerprint of every delivered gradient and every weight, compared over ranks.

Ranks that hold the same numbers have the same fingerprints, whatever the device: it is a sum of integers. The weights
of ranks that once differed stay different, so comparing now and then is enough.
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


def check_no_drift(grads: Grads, parameters: Mapping[str, nn.Parameter], step: int, collective: Collective) -> None:
    """Compare fingerprints. Collective: every rank must call it.

    Raises:
        RankMismatchError: on every rank; names parameters and ranks that differ from the first rank with the same part.
    """
    names = list(parameters)
    zero = torch.zeros((), dtype=torch.int64, device="cpu")
    rows = [
        *(fingerprint(grads[name]).cpu() if name in grads else zero for name in names),
        *(fingerprint(parameters[name]).cpu() for name in names),
    ]
    mine = torch.stack([torch.tensor(_part(parameters), dtype=torch.int64, device="cpu"), *rows]).to(
        collective.control_device
    )
    table = collective.all_gather(mine).cpu()
    reference = [_first_alike(table, rank) for rank in range(len(table))]
    apart = table[:, 1:] != table[reference][:, 1:]
    if not bool(apart.any()):
        return
    gradients, weights = apart.split(len(names), dim=1)
    found = [*_described("gradient", gradients, names), *_described("weight", weights, names)]
    raise RankMismatchError(
        f"at step {step} the ranks have drifted apart (compared with the first rank that holds the same): "
        f"{first_few(found, _MOST_NAMED, '; ')}. No rank applies this step. Look for what only some ranks do: "
        "weights changed by hand, an optimizer with other settings, a seed, other hardware; then load one checkpoint "
        "on all ranks."
    )


def _described(kind: str, apart: Tensor, names: Sequence[str]) -> list[str]:
    columns = {
        index: apart[:, index].nonzero().view(-1).tolist() for index in apart.any(dim=0).nonzero().view(-1).tolist()
    }
    return [
        f"the {kind} of {names[index]!r} differs on rank {', '.join(map(str, ranks))}"
        for index, ranks in columns.items()
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
