"""A reducer and a feedback of another package under FSDP2: what they can do is asked, not what they are called."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import tightgrad as tg
from support.own_methods.half import LEFT, Everyone, Half, Later
from support.ranks import run_ranks
from support.wrapping import full, ragged_batches, small_model, wrap
from tightgrad.core.protocols import Codec, ReduceContext, Sizes
from tightgrad.core.types import Grads, Reduced, State


@dataclass(frozen=True)
class Sharing(Everyone):
    """Sends pieces in float32, whatever the codec is."""

    card = replace(Everyone.card, id="sharing")
    called: ClassVar[list[str]] = []

    def refuses_shards(self, codec: Codec | None) -> str | None:
        return None

    def reduce_to_shards(
        self, grads: Grads, sizes: Sizes, codec: Codec | None, state: State, context: ReduceContext
    ) -> Reduced:
        assert codec is None
        rank, total = context.collective.rank, {}
        for name, grad in grads.items():
            self.called.append(name)
            pieces = [piece.contiguous() for piece in grad.reshape(-1).split(list(sizes[name]))]
            mine = [sizes[name][rank]] * context.collective.world_size
            total[name] = torch.stack(context.collective.all_to_all(pieces, mine)).sum(dim=0)
        return Reduced(total, grads)


@dataclass(frozen=True)
class Whole(Later):
    """Says that it needs whole sums."""

    card = replace(Later.card, id="whole")
    works_on_shards: ClassVar[bool] = False


def train(kind: str, compress: tg.Compress | None, flush: bool = False):
    model = wrap(small_model(), kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pipe = tg.attach(model, optimizer, tg.Plan(accumulate=tg.Accumulate(3), compress=compress))
    records = []
    for window in pipe.windows(ragged_batches(dist.get_rank())):
        for inputs, labels in window:
            pipe.backward(F.cross_entropy(model(inputs), labels))
        records.append(pipe.step())
    if flush:
        records.append(pipe.flush())
    return [full(p).detach() for p in model.parameters()], records, pipe.state_dict()["slots"]


def outside():
    exact, _, _ = train("fsdp2", None)
    mine, _, _ = train("fsdp2", tg.Compress(reducer=Sharing()))
    assert Sharing.called, "the reducer was not asked"
    ours = [train("fsdp2", tg.Compress(Half(), feedback=feedback), True) for feedback in (tg.ErrorFeedback(), Later())]
    refused = {}
    for name, compress in {
        "everyone": tg.Compress(reducer=Everyone()),
        "whole": tg.Compress(Half(), feedback=Whole()),
        "ef21": tg.Compress(Half(), feedback=tg.feedback.EF21()),
    }.items():
        with pytest.raises(tg.IncompatiblePlanError) as error:
            train("fsdp2", compress)
        refused[name] = str(error.value)
    return exact, mine, ours, refused


def test_a_reducer_and_a_feedback_from_outside_run_on_shards():
    for exact, mine, (built_in, later), refused in run_ranks(2, outside):
        for want, got in zip(exact, mine, strict=True):
            assert torch.allclose(want, got, rtol=1e-5, atol=1e-6)
        for want, got in zip(built_in[0], later[0], strict=True):
            assert torch.allclose(want, got, rtol=1e-5, atol=1e-7)
        norms = [[record.residual_norm for record in run[1]] for run in (built_in, later)]
        assert norms[0][0] > 0
        assert norms[1][:-1] == pytest.approx(norms[0][:-1], rel=1e-5)
        assert norms[1][-1] is None
        assert not later[1][-1].skipped
        assert LEFT.name not in later[2]
        assert "everyone sums whole gradients; use the reducer two_shot" in refused["everyone"]
        for name in ("whole", "ef21"):
            assert f"{name} remembers whole sums over ranks, of which FSDP2 gives each rank a shard" in refused[name]
