"""Every sample once an epoch, and the same samples in the same step on any number of ranks."""

import pytest
import torch

from tightgrad_lab.cases import load_case
from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.training.shards import epoch_order, rank_batches


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("num_samples", [1, 64, 1001])
def test_every_sample_exactly_once(num_samples, ranks):
    order = epoch_order(num_samples, seed=1, epoch=2)
    seen = torch.cat([batch for rank in range(ranks) for batch in rank_batches(order, rank, ranks, 16)])
    assert torch.equal(seen.sort().values, torch.arange(num_samples))


@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 1), (1, 4), (2, 1), (2, 4), (4, 2)])
def test_a_step_sees_the_same_samples_however_it_is_shared(ranks, micro_batches):
    order = epoch_order(1000, seed=0, epoch=0)
    per_rank = [rank_batches(order, rank, ranks, 128 // ranks // micro_batches) for rank in range(ranks)]
    for step, expected in enumerate(order.split(128)):
        window = slice(step * micro_batches, (step + 1) * micro_batches)
        seen = torch.cat([batch for batches in per_rank for batch in batches[window]])
        assert torch.equal(seen.sort().values, expected.sort().values)


def test_orders_differ_by_seed_and_epoch_and_repeat():
    orders = [epoch_order(100, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(orders[0], epoch_order(100, 0, 0))


def test_a_batch_that_ranks_cannot_share_names_the_ranks_that_can():
    settings = load_case("image").settings(full=False)
    assert settings.rank_batch_size(2) == settings.batch_size // 2
    with pytest.raises(ArgumentError, match="use one of 1, 2, 4, 8, 16, 32"):
        settings.rank_batch_size(5)
