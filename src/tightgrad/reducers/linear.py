"""Payloads of linear codecs are summed as they are, and decoded once: bytes per rank do not grow with the ranks.

Vogels et al. 2019, arXiv:1905.13727, section 3, on why codecs whose payloads can be added scale.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightgrad.core.card import MethodCard
from tightgrad.core.protocols import Codec, ReduceContext, Reducer
from tightgrad.core.types import Grads, Payload, Reduced, State
from tightgrad.reducers.sums import sum_over_ranks


@dataclass(frozen=True)
class Linear(Reducer):
    """Sums the payloads themselves with a float32 all-reduce, and decodes the sum once.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.clock import StageClock
        >>> from tightgrad.core.protocols import ReduceContext
        >>> from tightgrad.core.rng import StepRng
        >>> def total(collective):
        ...     context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        ...     grads = {"weight": torch.arange(1.0, 5.0) * (1 + collective.rank)}
        ...     return tg.reducers.Linear().reduce(grads, tg.codecs.RandomK(0.5), {}, context).total["weight"].tolist()
        >>> tg.collectives.run_threaded(2, total)
        [[3.0, 6.0, 0.0, 0.0], [3.0, 6.0, 0.0, 0.0]]
    """

    card: ClassVar[MethodCard] = MethodCard(
        id="linear",
        kind="reducer",
        summary="all-reduce of payloads that can be added; 2 (W - 1) / W payloads leave each rank",
        scope="tensor",
        linear=True,
        reference="Vogels et al. 2019, arXiv:1905.13727",
        use_when="the codec is linear, such as random_k",
        avoid_when="the codec is not linear",
    )

    def refuses(self, codec: Codec | None) -> str | None:
        """Return the reason if payloads of `codec` cannot be added; else None."""
        if codec is None:
            return "linear sends payloads and needs a codec; name one, or use dense"
        if not codec.linear:
            return f"linear adds payloads, which those of {codec.card.id} do not allow; use {codec.reducer}"
        return None

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum `grads` over ranks. Collective: every rank must call it with the same names and shapes."""
        assert codec is not None
        if not grads:
            return Reduced({}, {})
        device = next(iter(grads.values())).device
        with context.clock("encode"):
            mine = [
                codec.encode(grad.reshape(-1), context.spec(name, grad), context.rng.local(name, device))
                for name, grad in grads.items()
            ]
            buffer = torch.cat([tensor for payload in mine for tensor in payload.tensors])
        with context.clock("collective"):
            summed = sum_over_ranks(buffer, context.collective)
        pieces = iter(summed.split([tensor.numel() for payload in mine for tensor in payload.tensors]))
        total: Grads = {}
        transmitted: Grads = {}
        with context.clock("decode"):
            for payload, (name, grad) in zip(mine, grads.items(), strict=True):
                tensors = tuple(next(pieces) for _ in payload.tensors)
                total[name] = torch.zeros_like(grad, memory_format=torch.contiguous_format)
                with context.receiving():
                    codec.decode_to_(total[name].view(-1), Payload(tensors, payload.spec))
                transmitted[name] = codec.decode(payload).view(grad.shape)
        return Reduced(total, transmitted)
