"""What happens to a rank's own gradient: the local clip, and inf or NaN under each policy."""

import math

import pytest
import torch
from torch import Tensor, nn

import tightgrad as tg
from tightgrad.core.protocols import Collective

POISON = math.nan


def linear() -> nn.Linear:
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def updates(world_size: int, plan: tg.Plan, batches: list[list[Tensor]]) -> list[tuple[Tensor, list[tg.StepRecord]]]:
    """Train w x with SGD(1): the gradient of the mean of w x is the mean of x. Returns weights and records by rank."""

    def rank(collective: Collective) -> tuple[Tensor, list[tg.StepRecord]]:
        model = linear()
        pipe = tg.attach(model, torch.optim.SGD(model.parameters(), lr=1.0), plan, collective=collective)
        records = []
        for window in pipe.windows(batches[collective.rank]):
            for batch in window:
                pipe.backward(model(batch).mean())
            records.append(pipe.step())
        return model.weight.detach().clone().view(-1), records

    return tg.collectives.run_threaded(world_size, rank)


def deep_gradient_compression(samples: list[list[Tensor]], local_clip: float) -> Tensor:
    """What the ranks of algorithm 1 of the paper send in a step, all of it: sum_k clip(G_k, local_clip / sqrt(N)).

    Every rank k adds 1 / (N b) times the gradient of each of its b samples to G_k, N being the number of ranks; where
    ranks differ in their samples, N b is the number of all samples. Here the gradient of a sample is the sample itself.
    """
    count = sum(len(rows) for own in samples for rows in own)
    total = torch.zeros(3)
    for own in samples:
        summand = torch.zeros(3)
        for rows in own:
            for row in rows:
                summand += row / count
        bound = local_clip / math.sqrt(len(samples))
        total += summand * min(1.0, bound / float(summand.norm()))
    return total


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("ragged", [False, True])
def test_local_clip_is_that_of_the_paper(world_size: int, micro_batches: int, ragged: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [[1 + (rank + k) % 3 if ragged else 2 for k in range(micro_batches)] for rank in range(world_size)]
    scales = [5.0 if rank % 2 else 0.1 for rank in range(world_size)]
    batches = [
        [torch.randn(size, 3, generator=generator) * scale for size in row]
        for row, scale in zip(sizes, scales, strict=True)
    ]
    plan = tg.Plan(accumulate=tg.Accumulate(micro_batches=micro_batches), compress=tg.Compress(), local_clip=0.05)
    expected = deep_gradient_compression(batches, 0.05)
    assert not torch.allclose(expected, deep_gradient_compression(batches, 1e9))
    for weight, _ in updates(world_size, plan, batches):
        torch.testing.assert_close(-weight, expected, rtol=1e-5, atol=1e-7)


def test_local_clip_bounds_the_summand_and_not_the_mean() -> None:
    """Two ranks with equal shares: a mean of norm 1 is a summand of 0.5, which 0.6 * sqrt(2) / sqrt(2) lets pass."""
    batches = [[torch.tensor([[1.0, 0.0, 0.0]])], [torch.tensor([[0.0, 1.0, 0.0]])]]
    plan = tg.Plan(compress=tg.Compress(), local_clip=0.6 * math.sqrt(2))
    assert updates(2, plan, batches)[0][0].tolist() == [-0.5, -0.5, 0.0]
    plan = tg.Plan(compress=tg.Compress(), local_clip=0.4 * math.sqrt(2))
    torch.testing.assert_close(updates(2, plan, batches)[0][0], torch.tensor([-0.4, -0.4, 0.0]))


def test_local_clip_leaves_smaller_gradients_alone() -> None:
    batches = [[torch.full((2, 3), 0.1)], [torch.full((1, 3), 0.2)]]
    with_clip = updates(2, tg.Plan(compress=tg.Compress(), local_clip=10.0), batches)
    without = updates(2, tg.Plan(compress=tg.Compress()), batches)
    assert torch.equal(with_clip[0][0], without[0][0])


def test_local_clip_needs_compression_and_one_loss() -> None:
    with pytest.raises(tg.IncompatiblePlanError, match="compress"):
        tg.Plan(local_clip=1.0)
    with pytest.raises(tg.IncompatiblePlanError, match="several losses"):
        tg.Plan(accumulate=tg.Accumulate(losses=("a", "b")), compress=tg.Compress(), local_clip=1.0)
    with pytest.raises(tg.ConfigError):
        tg.Plan(compress=tg.Compress(), local_clip=0.0)
    plan = tg.Plan(compress=tg.Compress(), local_clip=1.0)
    assert tg.Plan.from_json(plan.to_json()) == plan


def poisoned_batches() -> list[list[Tensor]]:
    """Two ranks, three steps; one entry of rank 1's second gradient is not finite."""
    batches = [[torch.full((1, 3), float(step + 1)) for step in range(3)] for _ in range(2)]
    batches[1][1] = torch.tensor([[2.0, POISON, 2.0]])
    return batches


def plan_with(policy: str) -> tg.Plan:
    return tg.Plan(compress=tg.Compress(), clip=tg.clip.GlobalNorm(1e3), guard=tg.Guard(policy))


def test_raise_names_parameter_and_rank() -> None:
    with pytest.raises(tg.NonFiniteGradientError, match=r"weight \(1 entries on rank 1\)"):
        updates(2, plan_with("raise"), poisoned_batches())


def test_skip_is_a_run_without_that_step() -> None:
    clean = [[row[0], row[2]] for row in poisoned_batches()]
    (first, records), (second, _) = updates(2, plan_with("skip"), poisoned_batches())
    assert torch.equal(first, second)
    assert torch.equal(first, updates(2, plan_with("skip"), clean)[0][0])
    assert [record.skip_reason for record in records] == [None, "nonfinite", None]


def test_zero_drops_the_entry_of_that_rank_only() -> None:
    (first, records), (second, _) = updates(2, plan_with("zero"), poisoned_batches())
    assert torch.equal(first, second)
    torch.testing.assert_close(first, -torch.tensor([6.0, 5.0, 6.0]))
    assert not any(record.skipped for record in records)


def test_propagate_is_plain_pytorch() -> None:
    (first, records), (second, _) = updates(2, plan_with("propagate"), poisoned_batches())
    assert bool(first.isnan().any())
    assert bool(second.isnan().any())
    assert not any(record.skipped for record in records)


def test_policies_that_cannot_be_had() -> None:
    codec = tg.codecs.TopK(density=0.5)
    with pytest.raises(tg.IncompatiblePlanError, match="residuals"):
        tg.Plan(compress=tg.Compress(codec), guard=tg.Guard("propagate"))
