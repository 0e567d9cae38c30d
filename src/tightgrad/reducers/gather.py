"""Every rank sends its payload to every rank; each decodes and adds all of them in rank order.

    Seide et al. 2014 (1-bit SGD) and Lin et al. 2017 (DGC), arXiv:1712.01887, reduce like this.

(W - 1) payloads leave each rank, so it suits payloads that are far smaller than the gradient over W. Where their sizes
depend on the data, ranks first tell each other 8 bytes a tensor, and pad to the longest message.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tightgrad.core.card import MethodCard
from tightgrad.core.collective import gathered
from tightgrad.core.errors import PayloadError
from tightgrad.core.protocols import Codec, ReduceContext, Reducer, Sizes
from tightgrad.core.types import Grads, GradSpec, Payload, Reduced, Sent, State
from tightgrad.core.wire import from_bytes, most_nbytes, to_bytes
from tightgrad.reducers.scatter import refuses_cutting, shards_of_sums


@dataclass(frozen=True)
class Gather(Reducer):
    """Sends every rank's payload to every other rank; each decodes and adds all of them.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.clock import StageClock
        >>> from tightgrad.core.protocols import ReduceContext
        >>> from tightgrad.core.rng import StepRng
        >>> def total(collective):
        ...     context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        ...     grads = {"weight": torch.tensor([[4.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, -8.0]][collective.rank])}
        ...     return tg.reducers.Gather().reduce(grads, tg.codecs.TopK(0.25), {}, context).total["weight"].tolist()
        >>> tg.collectives.run_threaded(2, total)
        [[4.0, 0.0, 0.0, -8.0], [4.0, 0.0, 0.0, -8.0]]
    """

    card: ClassVar[MethodCard] = MethodCard(
        id="gather",
        kind="reducer",
        summary="all-gather of payloads; W - 1 payloads leave each rank",
        scope="tensor",
        reference="Lin et al. 2017, arXiv:1712.01887",
        use_when="payloads are sparse and ranks are few",
        avoid_when="ranks times payload comes near the size of the gradient; use two_shot instead",
    )

    def refuses(self, codec: Codec | None) -> str | None:
        """Return the reason if there is no codec, since gather sends payloads; else None."""
        return "gather sends payloads and needs a codec; name one, or use dense" if codec is None else None

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum `grads` over ranks. Collective: every rank must call it with the same names and shapes."""
        assert codec is not None
        if not grads:
            return Reduced({}, {})
        specs = [context.spec(name, grad) for name, grad in grads.items() if grad.numel()]
        if specs and codec.fixed_size:
            return _gather_fixed(grads, codec, specs, context)
        return _gather_variable(grads, codec, specs, context)

    def refuses_shards(self, codec: Codec | None) -> str | None:
        """Return the reason if `codec` cannot encode pieces of a tensor one by one; else None."""
        return refuses_cutting(codec)

    def reduce_to_shards(
        self, grads: Grads, sizes: Sizes, codec: Codec | None, state: State, context: ReduceContext
    ) -> Reduced:
        """Sum over ranks; each rank keeps one piece, and is sent only that piece's payloads."""
        assert codec is not None
        return shards_of_sums(grads, sizes, codec, context)


def _gather_fixed(grads: Grads, codec: Codec, specs: list[GradSpec], context: ReduceContext) -> Reduced:
    device = specs[0].device
    with context.clock("encode"):
        flats = [grads[spec.name].reshape(-1) for spec in specs]
        message = codec.encode_all(flats, specs, lambda name: context.rng.local(name, device))
    with context.clock("collective"):
        messages = context.collective.all_gather(message)
    with context.clock("decode"):
        total = {name: torch.zeros(grad.shape, dtype=torch.float32, device=device) for name, grad in grads.items()}
        sums = [total[spec.name].view(-1) for spec in specs]
        for row in messages:
            with context.receiving():
                codec.add_all_to_(sums, row, specs)
    return Reduced(total, _SentMessage(codec, message, specs, {name: grad.shape for name, grad in grads.items()}))


class _SentMessage(Sent):
    """This rank's message, decoded when it is asked for."""

    def __init__(self, codec: Codec, message: Tensor, specs: list[GradSpec], shapes: Mapping[str, torch.Size]) -> None:
        self._codec = codec
        self._message = message
        self._specs = specs
        self._shapes = shapes
        self._dense: Grads = {}

    def subtract_from_(self, values: Mapping[str, Tensor]) -> None:
        """Subtract what was sent from each entry, in place."""
        flats = [values[spec.name].view(-1) for spec in self._specs]
        self._codec.add_all_to_(flats, self._message, self._specs, alpha=-1)

    def __getitem__(self, name: str) -> Tensor:
        if not self._dense:
            decoded = self._codec.decode_all(self._message, self._specs)
            self._dense = {spec.name: tensor for spec, tensor in zip(self._specs, decoded, strict=True)}
        empty = torch.empty(0, dtype=torch.float32, device=self._specs[0].device)
        dense = self._dense.get(name, empty)
        return dense.view(self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _gather_variable(grads: Grads, codec: Codec, specs: list[GradSpec], context: ReduceContext) -> Reduced:
    device = next(iter(grads.values())).device
    with context.clock("encode"):
        mine = [
            codec.encode(grads[spec.name].reshape(-1), spec, context.rng.local(spec.name, device)) for spec in specs
        ]
        message = to_bytes(mine, device)
    with context.clock("collective"):
        messages, nbytes = exchange(message, mine, codec, specs, context)
    total = {name: torch.zeros(grad.numel(), dtype=torch.float32, device=device) for name, grad in grads.items()}
    with context.clock("decode"):
        for row, sizes in zip(messages, nbytes, strict=True):
            with context.receiving():
                for payload in from_bytes(row, codec, specs, sizes):
                    codec.add_to_(total[payload.spec.name], payload)
        transmitted = {name: grad.clone() for name, grad in grads.items() if not grad.numel()}
        transmitted |= {payload.spec.name: codec.decode(payload) for payload in mine}
    return Reduced(
        {name: total[name].view(grad.shape) for name, grad in grads.items()},
        {name: transmitted[name].view(grad.shape) for name, grad in grads.items()},
    )


def exchange(
    message: Tensor, mine: list[Payload], codec: Codec, specs: list[GradSpec], context: ReduceContext
) -> tuple[list[Tensor], list[list[int] | None]]:
    """Return all ranks' messages, and the sizes of the payloads in each (None where they are known).

    Both are empty if any rank announces an impossible size, which is noted in `context.failures` of every rank.
    """
    collective = context.collective
    unknown = [index for index, spec in enumerate(specs) if codec.payload_nbytes(spec) is None]
    if not unknown:
        return list(collective.all_gather(message)), [None] * collective.world_size
    table = gathered([mine[index].nbytes for index in unknown], collective)
    rows: list[list[int]] = []
    with context.receiving():  # all ranks see the same table, and leave out the messages together
        rows = [_sizes(rank, sizes, unknown, codec, specs) for rank, sizes in enumerate(table)]
    if not rows:
        return [], []
    lengths = [sum(row) for row in rows]
    padded = torch.nn.functional.pad(message, (0, max(lengths) - message.numel()))
    received = collective.all_gather(padded)
    return [row[:length] for row, length in zip(received, lengths, strict=True)], [*rows]


def _sizes(rank: int, told: list[int], unknown: list[int], codec: Codec, specs: list[GradSpec]) -> list[int]:
    """The sizes of one rank's payloads, of which it told the `unknown` ones."""
    row = [codec.payload_nbytes(spec) or 0 for spec in specs]
    for index, size in zip(unknown, told, strict=True):
        most = most_nbytes(codec, specs[index])
        if not 0 <= size <= most:
            raise PayloadError(
                f"rank {rank} announces {size} bytes for {specs[index].name!r}, which has at most {most}; the ranks "
                "run different versions or settings."
            )
        row[index] = size
    return row
