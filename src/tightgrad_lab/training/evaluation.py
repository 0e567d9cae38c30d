"""The scores of a model on a case's test samples, which the ranks share out."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tightgrad_lab.training.case import AnyCase, Batch, Scores
from tightgrad_lab.training.ranks import Rank

EVALUATION_BATCH = 250

Count = Callable[[nn.Module, Batch, object, Tensor], Tensor | None]


def evaluate(case: AnyCase, model: nn.Module, samples: object, rank: Rank) -> Scores:
    """The case's scores. Collective: every rank must call it."""
    total = _total(case, case.count, model, samples, rank)
    assert total is not None
    return case.scores(total)


def evaluate_last(case: AnyCase, model: nn.Module, samples: object, rank: Rank) -> Scores:
    """The scores that a case has only of the finished model; none of most. Collective: every rank must call it."""
    total = _total(case, case.last_count, model, samples, rank)
    return {} if total is None else case.last_scores(total)


@torch.no_grad()
def _total(case: AnyCase, count: Count, model: nn.Module, samples: object, rank: Rank) -> Tensor | None:
    model.eval()
    shard = torch.arange(len(samples))[rank.rank :: rank.ranks]  # type: ignore[arg-type]
    counts = []
    for indices in shard.split(EVALUATION_BATCH):
        batch = tuple(tensor.to(rank.device) for tensor in case.batch(samples, indices))
        counted = count(model, batch, samples, indices)
        if counted is not None:
            counts.append(counted)
    model.train()
    if not counts:
        return None
    total = torch.stack(counts).sum(0).to(rank.device)
    dist.all_reduce(total)
    return total
