"""The two rounds of `two_shot` for sparse codecs: entries are selected in each rank's chunk, and again among the sums.

    Li and Hoefler 2022, Near-Optimal Sparse Allreduce (Ok-Topk), arXiv:2201.07598: bytes per rank do not grow with the
    number of ranks.

Departs from the paper: every chunk keeps the same share of its entries, so sizes are known and nothing is rebalanced.
What the second selection drops counts as not transmitted by the chunk's owner, so that error feedback returns it.
"""

from dataclasses import dataclass
from typing import ClassVar

from tightgrad.core.card import MethodCard
from tightgrad.core.errors import ConfigError
from tightgrad.core.protocols import Codec, ReduceContext, Reducer, Sizes
from tightgrad.core.types import Grads, Reduced, State
from tightgrad.reducers.scatter import refuses_pieces, shards_of_sums
from tightgrad.reducers.two_shot import reduce_in_two_shots


@dataclass(frozen=True)
class SparseTwoShot(Reducer):
    """Runs the two rounds of `two_shot` with a selection of entries in each chunk, and among the sums.

    Args:
        second: codec of the sums; None is the plan's. Sums of W ranks have up to W times as many entries, so one of a
            higher density loses less.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.clock import StageClock
        >>> from tightgrad.core.protocols import ReduceContext
        >>> from tightgrad.core.rng import StepRng
        >>> def total(collective):
        ...     context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        ...     grads = {"weight": torch.tensor([4.0, 1.0, 0.0, -3.0]) * (1 + collective.rank)}
        ...     reducer = tg.reducers.SparseTwoShot()
        ...     return reducer.reduce(grads, tg.codecs.TopK(0.5), {}, context).total["weight"].tolist()
        >>> tg.collectives.run_threaded(2, total)
        [[12.0, 0.0, 0.0, -9.0], [12.0, 0.0, 0.0, -9.0]]
    """

    second: Codec | None = None

    card: ClassVar[MethodCard] = MethodCard(
        id="sparse_two_shot",
        kind="reducer",
        summary="sparse reduce-scatter, float32 sum, sparse all-gather; 2 (W - 1) / W payloads leave each rank",
        scope="tensor",
        reference="Li and Hoefler 2022, arXiv:2201.07598",
        use_when="payloads are sparse and there are more than a few ranks; combine with error feedback",
        avoid_when="there are two ranks, or no error feedback; use gather instead",
    )

    def __post_init__(self) -> None:
        second: object = self.second
        if second is not None and not (isinstance(second, Codec) and second.fixed_size):
            raise ConfigError(f"second={second!r} must be None or a codec of fixed size, such as TopK(0.01).")

    def refuses(self, codec: Codec | None) -> str | None:
        """Return the reason if there is no codec, or its payloads have no known size; else None."""
        if codec is None:
            return "sparse_two_shot sends payloads and needs a codec; name one, or use dense"
        if not codec.fixed_size:
            return f"sparse_two_shot needs payloads of known size, which those of {codec.card.id} have not; use gather"
        return None

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum `grads` over ranks. Collective: every rank must call it with the same names and shapes."""
        assert codec is not None
        return reduce_in_two_shots(grads, codec, self.second or codec, context)

    def refuses_shards(self, codec: Codec | None) -> str | None:
        """Return the reason if there is a second codec, since sums are not sent again, or payloads of unknown size;
        else None.
        """
        reason = refuses_pieces(codec)
        if reason is None and self.second is not None:
            reason = (
                f"second={self.second!r} encodes the sums once more, and under FSDP2 they are not sent again: each "
                "rank keeps its shard of them; drop second from SparseTwoShot"
            )
        return reason

    def reduce_to_shards(
        self, grads: Grads, sizes: Sizes, codec: Codec | None, state: State, context: ReduceContext
    ) -> Reduced:
        """Sum over ranks; each rank keeps one piece. This is the first of the two rounds."""
        assert codec is not None
        return shards_of_sums(grads, sizes, codec, context)
