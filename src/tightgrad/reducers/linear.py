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
    """Float32 all-reduce of payloads, added in rank order."""

    card: ClassVar[MethodCard] = MethodCard(
        id="linear",
        kind="reducer",
        summary="all-reduce of payloads that can be added; 2 (W - 1) / W payloads leave each rank",
        scope="tensor",
        linear=True,
        reference="Vogels et al. 2019, arXiv:1905.13727",
        use_when="the codec is linear, such as random_k",
        avoid_when="it is not",
    )

    def refuses(self, codec: Codec | None) -> str | None:
        """Payloads must be numbers that can be added."""
        if codec is None:
            return "linear sends payloads and needs a codec; name one, or use dense"
        if not codec.linear:
            return f"linear adds payloads, which those of {codec.card.id} do not allow; use {codec.reducer}"
        return None

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum over ranks."""
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
