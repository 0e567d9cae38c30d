"""Every rank sends its payload to every rank; each decodes and adds all of them in rank order.

    Seide et al. 2014 (1-bit SGD) and Lin et al. 2017 (DGC), arXiv:1712.01887, reduce like this.

(W - 1) payloads leave each rank, so it suits payloads that are far smaller than the gradient over W.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightgrad.core.card import MethodCard
from tightgrad.core.protocols import Codec, ReduceContext, Reducer
from tightgrad.core.types import Grads, GradSpec, Reduced, State
from tightgrad.core.wire import from_bytes, to_bytes


@dataclass(frozen=True)
class Gather(Reducer):
    """All-gather of payloads."""

    card: ClassVar[MethodCard] = MethodCard(
        id="gather",
        kind="reducer",
        summary="all-gather of payloads; W - 1 payloads leave each rank",
        scope="tensor",
        reference="Lin et al. 2017, arXiv:1712.01887",
        use_when="payloads are sparse and ranks are few",
        avoid_when="ranks times payload comes near the gradient: use two_shot",
    )

    def refuses(self, codec: Codec | None) -> str | None:
        """A payload is needed."""
        return "gather sends payloads and needs a codec; name one, or use dense" if codec is None else None

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Sum over ranks."""
        assert codec is not None
        if not grads:
            return Reduced({}, {})
        device = next(iter(grads.values())).device
        specs = [GradSpec.of(name, grad) for name, grad in grads.items()]
        with context.clock("encode"):
            mine = [
                codec.encode(grads[spec.name].reshape(-1), spec, context.rng.local(spec.name, device)) for spec in specs
            ]
            message = to_bytes(mine, device)
        with context.clock("collective"):
            messages = context.collective.all_gather(message)
        total = {name: torch.zeros(grad.numel(), device=device) for name, grad in grads.items()}
        with context.clock("decode"):
            for row in messages:
                for payload in from_bytes(row, codec, specs):
                    codec.add_to_(total[payload.spec.name], payload)
            transmitted = {payload.spec.name: codec.decode(payload) for payload in mine}
        return Reduced(
            {name: total[name].view(grad.shape) for name, grad in grads.items()},
            {name: transmitted[name].view(grad.shape) for name, grad in grads.items()},
        )
