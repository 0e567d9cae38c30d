"""Dense inside a node, compressed between nodes.

    1. The ranks of a node sum their gradients in float32.
    2. Each tensor has an owner in every node, who reduces the node's sum with the owners in the other nodes.
    3. The owner gives the total to its node.

    Markov et al. 2022, CGX, arXiv:2111.08617, and Wang et al. 2023, ZeRO++, arXiv:2306.10209, compress only where the
    link is slow.

What compression leaves out of a node's sum counts as not transmitted by the owner, so that the transmitted parts of a
node's ranks add up to what the node sent.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from tightgrad.core.card import MethodCard
from tightgrad.core.check import check_integer
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec, Collective, ReduceContext, Reducer
from tightgrad.core.types import Grads, Reduced, State
from tightgrad.reducers.sums import sum_over_ranks
from tightgrad.reducers.two_shot import TwoShot


@dataclass(frozen=True)
class Hierarchical(Reducer):
    """Sums in float32 inside a node, and runs another reducer between nodes.

    Args:
        ranks_per_node: consecutive ranks that share a fast link, at least 1; the last node may have fewer.
        inner: the reducer that runs between nodes; it must keep no state.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.clock import StageClock
        >>> from tightgrad.core.protocols import ReduceContext
        >>> from tightgrad.core.rng import StepRng
        >>> def total(collective):
        ...     context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        ...     grads = {"weight": torch.full((4,), 1.0 + collective.rank)}
        ...     reducer = tg.reducers.Hierarchical(ranks_per_node=2)
        ...     return reducer.reduce(grads, tg.codecs.Cast(), {}, context).total["weight"].tolist()
        >>> tg.collectives.run_threaded(4, total)[0]
        [10.0, 10.0, 10.0, 10.0]
    """

    ranks_per_node: int
    inner: Reducer = field(default_factory=TwoShot)

    card: ClassVar[MethodCard] = MethodCard(
        id="hierarchical",
        kind="reducer",
        summary="float32 sums inside a node, another reducer between nodes",
        scope="tensor",
        reference="Markov et al. 2022, arXiv:2111.08617; Wang et al. 2023, arXiv:2306.10209",
        use_when="nodes have several ranks each, and only the link between nodes is slow",
        avoid_when="each node has one rank",
    )

    def __post_init__(self) -> None:
        check_integer("ranks_per_node", self.ranks_per_node, low=1)
        inner: object = self.inner
        if not isinstance(inner, Reducer) or inner.slots or isinstance(inner, Hierarchical):
            raise ConfigError(
                f"inner={inner!r} must be a reducer that remembers nothing, such as TwoShot() or Gather(): a tensor's "
                "owner alone would have its memory."
            )

    def refuses(self, codec: Codec | None) -> str | None:
        """Return why the inner reducer cannot run with `codec`; None if it can."""
        return self.inner.refuses(codec)

    def refuses_between_nodes(self, codec: Codec | None) -> str | None:
        """Return the reason why it is not needed under FSDP2, which sums within nodes itself."""
        return "FSDP2 sums within nodes already, and compress runs between them; use the inner reducer by itself"

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum `grads` over ranks. Collective: every rank must call it with the same names and shapes."""
        if not grads:
            return Reduced({}, {})
        node, across, num_nodes, num_owners = self._groups(context.collective)
        with context.clock("collective"):
            buffer = torch.cat([grad.reshape(-1) for grad in grads.values()])
            pieces = sum_over_ranks(buffer, node).split([grad.numel() for grad in grads.values()])
        sums = {name: piece.view(grad.shape) for (name, grad), piece in zip(grads.items(), pieces, strict=True)}
        if num_nodes == 1:
            return Reduced(sums, dict(grads))
        owners = {name: owner_of(name, num_owners) for name in grads}
        owned = {name: sums[name] for name, owner in owners.items() if owner == node.rank}
        inside = ReduceContext(across, replace(context.rng, rank=across.rank), context.clock, context.failures)
        reduced = self.inner.reduce(owned, codec, {}, inside)
        total = self._deliver(reduced.total, sums, owners, node, context)
        transmitted = {
            name: grad - (sums[name] - reduced.transmitted[name]) if name in owned else grad
            for name, grad in grads.items()
        }
        return Reduced(total, transmitted)

    def _groups(self, collective: Collective) -> tuple[Collective, Collective, int, int]:
        """The node, the ranks of the same place in other nodes, the number of nodes, and of ranks in the smallest."""
        size, step = collective.world_size, self.ranks_per_node
        nodes = [list(range(start, min(size, start + step))) for start in range(0, size, step)]
        places = [[members[place] for members in nodes if place < len(members)] for place in range(len(nodes[0]))]
        return collective.split(nodes), collective.split(places), len(nodes), len(nodes[-1])

    @staticmethod
    def _deliver(mine: Grads, sums: Grads, owners: dict[str, int], node: Collective, context: ReduceContext) -> Grads:
        """Every owner's totals to its whole node."""
        total: Grads = {}
        for owner in sorted(set(owners.values())):
            names = [name for name in sums if owners[name] == owner]
            source = mine if owner == node.rank else sums
            buffer = torch.cat([source[name].reshape(-1) for name in names])
            if buffer.numel():
                with context.clock("collective"):
                    node.broadcast_(buffer, owner)
            pieces = buffer.split([sums[name].numel() for name in names])
            total.update({name: piece.view(sums[name].shape) for name, piece in zip(names, pieces, strict=True)})
        return {name: total[name] for name in sums}


def owner_of(name: str, num_owners: int) -> int:
    """Choose a rank of the node from the name alone, so that it does not change with what else is reduced."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % num_owners
