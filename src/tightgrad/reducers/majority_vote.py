"""Majority vote: every rank has one vote on each element's sign; total = sign(sum_r sign(C(x_r))) sum_r |C(x_r)|.

    Bernstein et al. 2018, signSGD with Majority Vote is Communication Efficient and Fault Tolerant, arXiv:1810.05291.

A tie delivers 0. Departs from the paper: the vote is scaled by the sum of the ranks' scales instead of by one, so that
totals have the unit of a gradient and error feedback can be had; and payloads are gathered, there is no server.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tightgrad.core.card import MethodCard
from tightgrad.core.protocols import Codec, ReduceContext, Reducer
from tightgrad.core.types import Grads, Reduced, State


@dataclass(frozen=True)
class MajorityVote(Reducer):
    """Gathers signs and scales, and gives every rank one vote on each element's sign.

    Examples:
        >>> import torch
        >>> import tightgrad as tg
        >>> from tightgrad.core.clock import StageClock
        >>> from tightgrad.core.protocols import ReduceContext
        >>> from tightgrad.core.rng import StepRng
        >>> def total(collective):
        ...     context = ReduceContext(collective, StepRng(0, 0, collective.rank), StageClock())
        ...     grads = {"weight": torch.tensor([[1.0, -1.0], [1.0, -1.0], [-9.0, 9.0]][collective.rank])}
        ...     return tg.reducers.MajorityVote().reduce(grads, tg.codecs.Sign(), {}, context).total["weight"].tolist()
        >>> tg.collectives.run_threaded(3, total)[0]
        [11.0, -11.0]
    """

    card: ClassVar[MethodCard] = MethodCard(
        id="majority_vote",
        kind="reducer",
        summary="the sign that most ranks have, scaled by all; W - 1 payloads leave each rank",
        scope="element",
        reference="Bernstein et al. 2018, arXiv:1810.05291",
        use_when="one rank's gradient must not outweigh the others, as with noisy or faulty ranks",
        avoid_when="the sizes of the ranks' gradients matter; use two_shot instead",
    )

    def refuses(self, codec: Codec | None) -> str | None:
        """Return the reason if `codec` does not send signs, on which ranks vote; else None."""
        if codec is None or not codec.sends_signs:
            found = "no codec" if codec is None else codec.card.id
            return f"majority_vote counts signs, but the plan has {found}; use the codec sign, or gather or dense"
        return None

    def reduce(self, grads: Grads, codec: Codec | None, state: State, context: ReduceContext) -> Reduced:
        """Let the ranks vote on each sign. Collective: every rank must call it with the same names and shapes."""
        assert codec is not None
        if not grads:
            return Reduced({}, {})
        device = next(iter(grads.values())).device
        specs = [context.spec(name, grad) for name, grad in grads.items()]
        with context.clock("encode"):
            flats = [grad.reshape(-1) for grad in grads.values()]
            message = codec.encode_all(flats, specs, lambda name: context.rng.local(name, device))
        with context.clock("collective"):
            messages = context.collective.all_gather(message)
        votes = {spec.name: torch.zeros(spec.numel, dtype=torch.float32, device=device) for spec in specs}
        scales = {spec.name: torch.zeros(spec.numel, dtype=torch.float32, device=device) for spec in specs}
        total: Grads = {}
        transmitted: Grads = {}
        with context.clock("decode"):
            for row in messages:
                with context.receiving():
                    for name, decoded in zip(grads, codec.decode_all(row, specs), strict=True):
                        votes[name] += decoded.sign()
                        scales[name] += decoded.abs_()
            for name, decoded in zip(grads, codec.decode_all(message, specs), strict=True):
                outcome = votes[name].sign_()
                total[name] = (outcome * scales[name]).view(grads[name].shape)
                transmitted[name] = (outcome * decoded.abs_()).view(grads[name].shape)
        return Reduced(total, transmitted)
