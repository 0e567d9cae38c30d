"""What all ranks have to have alike: which ranks a difference names."""

import pytest

from tightgrad.accumulate.alike import difference, packed, parted


def numbers_of(part: str, hashes: list[int | None]) -> list[float]:
    same = {"steps": 3, "settings": 5, "frozen": 7, "modes": 9, "modules": 11}
    return [packed(**{**same, part: one}) for one in hashes]


@pytest.mark.parametrize("part", ["modes", "modules"])
def test_a_rank_without_micro_batches_is_not_named(part):
    numbers = numbers_of(part, [None, 1, 2, None, 1, 2])
    assert difference(numbers) == part
    told = parted(part, numbers, "Here.")
    assert told.startswith("the ranks differ: rank 2, 5 ")
    assert "than rank 1" in told


@pytest.mark.parametrize("part", ["frozen", "modes", "modules"])
def test_ranks_that_differ_are_compared_with_rank_0(part):
    numbers = numbers_of(part, [1, 1, 2])
    assert difference(numbers) == part
    told = parted(part, numbers, "Here.")
    assert told.startswith("the ranks differ: rank 2 ")
    assert "than rank 0" in told


@pytest.mark.parametrize("part", ["modes", "modules"])
def test_ranks_that_know_nothing_do_not_differ(part):
    assert difference(numbers_of(part, [None, 1, None, 1])) is None


@pytest.mark.parametrize("part", ["settings", "frozen", "modes", "modules"])
def test_a_difference_that_stays_is_told_within_some_steps(part):
    """Hashes that are alike in their last bits, or in one step's, are not in all."""
    for apart in (1 << 8, 1 << 16, (1 << 8) - 1, 1 << 40):
        same = {"settings": 5, "frozen": 7, "modes": 9, "modules": 11}
        other = {**same, part: same[part] + apart}
        told = {difference([packed(steps=step, **same), packed(steps=step, **other)]) for step in range(4)}
        assert part in told
