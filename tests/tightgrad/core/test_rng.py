"""Random numbers depend on seed, step, name and rank, and on nothing else."""

import torch

from tightgrad.core.rng import StepRng

CPU = torch.device("cpu")
FROZEN = [1893352290, 725351299, 2026688987]


def draw(generator: torch.Generator) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=generator).tolist())


def test_each_of_seed_step_name_and_rank_makes_a_difference():
    rngs = [
        StepRng(0, 0, 0),
        StepRng(1, 0, 0),
        StepRng(0, 1, 0),
        StepRng(0, 0, 1),
        StepRng(0, 10, 0),
        StepRng(10, 0, 0),
    ]
    draws = [draw(rng.local(name, CPU)) for rng in rngs for name in ("weight", "bias", "weight/rank 1")]
    assert len(set(draws)) == len(draws)


def test_shared_is_the_same_on_every_rank_and_differs_from_local():
    shared = {draw(StepRng(3, 5, rank).shared("weight", CPU)) for rank in range(4)}
    local = {draw(StepRng(3, 5, rank).local("weight", CPU)) for rank in range(4)}
    assert len(shared) == 1
    assert len(shared | local) == 5


def test_the_global_generator_neither_matters_nor_moves():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = draw(StepRng(0, 0, 0).local("weight", CPU))
        torch.manual_seed(2)
        before = torch.get_rng_state()
        second = draw(StepRng(0, 0, 0).local("weight", CPU))
        assert first == second
        assert torch.equal(torch.get_rng_state(), before)


def test_the_numbers_are_frozen():
    """A resumed run of a later version draws what this version drew."""
    assert torch.randint(0, 2**31, (3,), generator=StepRng(7, 3, 1).local("layer.weight", CPU)).tolist() == FROZEN
