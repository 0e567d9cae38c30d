"""The first half of a reduction in two shots, for those who keep shards: each rank gets the sum of its own piece.

    1. Every rank encodes its W pieces and sends piece r to rank r (all-to-all).
    2. Rank r decodes and adds in float32, in rank order.

Wang et al. 2023, ZeRO++, arXiv:2306.10209. Nothing is encoded a second time.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tightgrad.core.protocols import Codec, ReduceContext
from tightgrad.core.types import Grads
from tightgrad.core.wire import from_bytes, to_bytes


def reduce_scatter_encoded(
    grads: Grads, sizes: Mapping[str, Sequence[int]], codec: Codec, context: ReduceContext
) -> tuple[Grads, Grads]:
    """Sum over ranks. Collective: every rank must call it with the same names, shapes and sizes.

    Args:
        grads: this rank's float32 gradients.
        sizes: of the pieces of each, by rank, in elements.
        codec: of fixed size; it encodes each piece by itself.
        context: network, random numbers, clock.

    Returns:
        The sums of this rank's pieces, in one dimension, and what this rank transmitted, in the gradients' shapes.
    """
    if not grads:
        return {}, {}
    rank, device = context.collective.rank, next(iter(grads.values())).device
    specs = {name: context.spec(name, grad) for name, grad in grads.items()}
    rngs = {name: context.rng.local(name, device) for name in grads}
    with context.clock("encode"):
        pieces = {name: grad.reshape(-1).split(list(sizes[name])) for name, grad in grads.items()}
        sent = [
            [codec.encode(pieces[name][other], specs[name].part(sizes[name][other]), rngs[name]) for name in grads]
            for other in range(context.collective.world_size)
        ]
        messages = [to_bytes(row, device) for row in sent]
    with context.clock("collective"):
        own_nbytes = messages[rank].numel()
        received = context.collective.all_to_all(messages, [own_nbytes] * len(messages))
    with context.clock("decode"):
        own_specs = [specs[name].part(sizes[name][rank]) for name in grads]
        sums: dict[str, Tensor] = {spec.name: torch.zeros(spec.numel, device=device) for spec in own_specs}
        for message in received:
            with context.receiving():
                for payload in from_bytes(message, codec, own_specs):
                    codec.add_to_(sums[payload.spec.name], payload)
        decoded = [[codec.decode(payload) for payload in row] for row in sent]
        transmitted = {
            name: torch.cat([row[index] for row in decoded]).view(grad.shape)
            for index, (name, grad) in enumerate(grads.items())
        }
    return sums, transmitted
