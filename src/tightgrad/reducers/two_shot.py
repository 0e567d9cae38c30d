"""Quantised reduce-scatter and all-gather: bytes per rank do not grow with the number of ranks.

    1. Each tensor is cut into W chunks; rank r owns chunk r.
    2. Every rank encodes its W chunks and sends chunk r to rank r (all-to-all).
    3. The owner decodes and adds in float32, in rank order, and encodes the sum.
    4. The encoded sums go to every rank (all-gather), which decodes them.

Wang et al. 2023, ZeRO++, arXiv:2306.10209, and Markov et al. 2022, CGX, arXiv:2111.08617, reduce like this.

Departs from both: the error of the second encoding counts as not transmitted by the chunk's owner, so that error
feedback returns it and the transmitted parts of all ranks add up to the total.
"""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.core.card import MethodCard
from tightgrad.core.protocols import Codec, ReduceContext, Reducer, Sizes
from tightgrad.core.types import Grads, Reduced, State
from tightgrad.core.wire import fixed_nbytes
from tightgrad.reducers.scatter import refuses_cutting, shards_of_sums

CHUNK_SCOPES = ("element", "block")


def chunk_numels(numel: int, world_size: int, granularity: int) -> list[int]:
    """Return the sizes of the W chunks of a tensor: whole multiples of `granularity`, as even as they can be."""
    units = -(-numel // granularity)
    edges = [min(numel, granularity * (units * rank // world_size)) for rank in range(world_size + 1)]
    return [stop - start for start, stop in itertools.pairwise(edges)]


@dataclass(frozen=True)
class TwoShot(Reducer):
    """Encodes a reduce-scatter, sums in float32, and encodes the all-gather of the sums.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.clock import StageClock
        >>> from tightgrad.core.protocols import ReduceContext
        >>> from tightgrad.core.rng import StepRng
        >>> def total(collective):
        ...     context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        ...     grads = {"weight": torch.tensor([1.0, -2.0, 0.5]) * (1 + collective.rank)}
        ...     return tg.reducers.TwoShot().reduce(grads, tg.codecs.Cast(), {}, context).total["weight"].tolist()
        >>> tg.collectives.run_threaded(2, total)
        [[3.0, -6.0, 1.5], [3.0, -6.0, 1.5]]
    """

    card: ClassVar[MethodCard] = MethodCard(
        id="two_shot",
        kind="reducer",
        summary="encoded reduce-scatter, float32 sum, encoded all-gather; 2 (W - 1) / W payloads leave each rank",
        scope="block",
        reference="Wang et al. 2023, arXiv:2306.10209; Markov et al. 2022, arXiv:2111.08617",
        use_when="values are quantised, at any number of ranks",
        avoid_when="payloads are sparse; use gather instead",
    )

    def refuses(self, codec: Codec | None) -> str | None:
        """Return the reason if there is no codec, or it cannot encode chunks by themselves; else None."""
        if codec is None:
            return "two_shot sends payloads and needs a codec; name one, or use dense"
        if codec.scope not in CHUNK_SCOPES:
            return (
                f"two_shot cuts tensors into chunks, but {codec.card.id} needs scope {codec.scope}; use gather, or "
                "sparse_two_shot, which selects in each chunk"
            )
        if not codec.fixed_size:
            return f"two_shot needs payloads of a known size, which those of {codec.card.id} have not; use gather"
        return None

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum `grads` over ranks. Collective: every rank must call it with the same names and shapes."""
        assert codec is not None
        return reduce_in_two_shots(grads, codec, codec, context)

    def refuses_shards(self, codec: Codec | None) -> str | None:
        """Return the reason if `codec` cannot encode pieces of a tensor one by one; else None."""
        return refuses_cutting(codec)

    def reduce_to_shards(
        self, grads: Grads, sizes: Sizes, codec: Codec | None, state: State, context: ReduceContext
    ) -> Reduced:
        """Sum over ranks; each rank keeps one piece. This is the first of the two rounds."""
        assert codec is not None
        return shards_of_sums(grads, sizes, codec, context)


def reduce_in_two_shots(grads: Grads, first: Codec, second: Codec, context: ReduceContext) -> Reduced:
    """Sum over ranks: `first` encodes what goes to the owners of chunks, `second` the sums that come back."""
    if not grads:
        return Reduced({}, {})
    plan = _Chunks(grads, first, second, context)
    rank, device = context.collective.rank, plan.device
    with context.clock("encode"):
        rngs = {name: context.rng.local(name, device) for name in grads}
        messages = [
            first.encode_all(chunks, specs, rngs.__getitem__)
            for chunks, specs in zip(plan.split(grads), plan.specs, strict=True)
        ]
    with context.clock("collective"):
        received = context.collective.all_to_all(messages, [messages[rank].numel()] * len(messages))
    own = plan.specs[rank]
    with context.clock("decode"):
        sums = [torch.zeros(spec.numel, dtype=torch.float32, device=device) for spec in own]
        for message in received:
            with context.receiving():
                first.add_all_to_(sums, message, own)
        transmitted = [first.decode_all(*sent) for sent in zip(messages, plan.specs, strict=True)]
    with context.clock("encode"):
        message = second.encode_all(sums, own, rngs.__getitem__)
    with context.clock("collective"):
        delivered = plan.exchange(message, context)
    with context.clock("decode"):
        rows = []
        for message, row in zip(delivered, plan.specs, strict=True):
            totals = [torch.zeros(spec.numel, dtype=torch.float32, device=device) for spec in row]
            with context.receiving():
                totals = second.decode_all(message, row)
            rows.append(totals)
        for mine, total, final in zip(transmitted[rank], sums, rows[rank], strict=True):
            mine.add_(final - total)
    return Reduced(plan.join(rows), plan.join(transmitted))


class _Chunks:
    """Which piece of which tensor belongs to which rank."""

    def __init__(self, grads: Grads, first: Codec, second: Codec, context: ReduceContext) -> None:
        world_size = context.collective.world_size
        granularity = math.lcm(first.granularity, second.granularity)
        self.shapes = {name: grad.shape for name, grad in grads.items()}
        self.device = next(iter(grads.values())).device
        self.sizes = {name: chunk_numels(g.numel(), world_size, granularity) for name, g in grads.items()}
        specs = [context.spec(name, grad) for name, grad in grads.items()]
        self.specs = [[spec.part(self.sizes[spec.name][rank]) for spec in specs] for rank in range(world_size)]
        self.nbytes = [sum(fixed_nbytes(second, spec) for spec in row) for row in self.specs]

    def split(self, grads: Grads) -> list[list[Tensor]]:
        """Rows by rank, in the order of the names."""
        pieces = [grad.reshape(-1).split(self.sizes[name]) for name, grad in grads.items()]
        return [list(row) for row in zip(*pieces, strict=True)]

    def join(self, rows: list[list[Tensor]]) -> Grads:
        """Put the pieces that `split` gave together again."""
        columns = zip(*rows, strict=True)
        return {
            name: torch.cat(list(column)).view(shape)
            for (name, shape), column in zip(self.shapes.items(), columns, strict=True)
        }

    def exchange(self, message: Tensor, context: ReduceContext) -> list[Tensor]:
        """All-gather of messages whose sizes differ by rank but are known to all."""
        longest = max(self.nbytes)
        padded = torch.nn.functional.pad(message, (0, longest - message.numel()))
        gathered = context.collective.all_gather(padded)
        return [row[:nbytes] for row, nbytes in zip(gathered, self.nbytes, strict=True)]
