"""The first round of `two_shot`, for wrappers that shard gradients: each rank gets the sum of its own piece.

    1. Every rank encodes its W pieces and sends piece r to rank r (all-to-all).
    2. Rank r decodes and adds in float32, in rank order.

Wang et al. 2023, ZeRO++, arXiv:2306.10209. Nothing is encoded a second time.
"""

import torch

from tightgrad.core.protocols import Codec, ReduceContext, Sizes
from tightgrad.core.types import Grads, Reduced

CUT_SCOPES = ("element", "block")


def refuses_pieces(codec: Codec | None) -> str | None:
    """Return why a codec cannot encode each rank's piece of a tensor by itself; None if it can."""
    if codec is None:
        return "FSDP2 sums shards, and without a codec it does so itself; drop compress"
    if not codec.fixed_size:
        return f"payloads of {codec.card.id} have no fixed size; use another codec, or DistributedDataParallel"
    return None


def refuses_cutting(codec: Codec | None) -> str | None:
    """Return why encoding a tensor in pieces is not the same as encoding the whole; None if it is."""
    if codec is not None and codec.scope not in CUT_SCOPES:
        return (
            f"{codec.card.id} needs whole tensors (scope {codec.scope}), and FSDP2 cuts them; use "
            "reducers.SparseTwoShot(), which selects in each shard, or DistributedDataParallel"
        )
    return refuses_pieces(codec)


def shards_of_sums(grads: Grads, sizes: Sizes, codec: Codec, context: ReduceContext) -> Reduced:
    """Return `reduce_scatter_encoded` as `Reducer.reduce_to_shards` does. Collective."""
    total, transmitted = reduce_scatter_encoded(grads, sizes, codec, context)
    return Reduced(total, transmitted)


def reduce_scatter_encoded(grads: Grads, sizes: Sizes, codec: Codec, context: ReduceContext) -> tuple[Grads, Grads]:
    """Sum pieces over ranks, encoded. Collective: every rank must call it with the same names, shapes and sizes.

    Args:
        grads: this rank's float32 gradients.
        sizes: for each name, the number of elements of each rank's piece.
        codec: encodes each piece by itself, into a payload of fixed size.
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
        pieces = [grad.reshape(-1).split(list(sizes[name])) for name, grad in grads.items()]
        rows = [[specs[name].part(sizes[name][other]) for name in grads] for other in range(len(pieces[0]))]
        messages = [
            codec.encode_all(chunks, row, rngs.__getitem__)
            for chunks, row in zip(zip(*pieces, strict=True), rows, strict=True)
        ]
    with context.clock("collective"):
        received = context.collective.all_to_all(messages, [messages[rank].numel()] * len(messages))
    with context.clock("decode"):
        sums = {name: torch.zeros(sizes[name][rank], dtype=torch.float32, device=device) for name in grads}
        for message in received:
            with context.receiving():
                codec.add_all_to_(list(sums.values()), message, rows[rank])
        decoded = zip(*(codec.decode_all(*sent) for sent in zip(messages, rows, strict=True)), strict=True)
        transmitted = {
            name: torch.cat(parts).view(grad.shape) for (name, grad), parts in zip(grads.items(), decoded, strict=True)
        }
    return sums, transmitted
