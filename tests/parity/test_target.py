"""Every wrapper, world size and kind of window delivers the gradient of one big batch on one device."""

import pytest
import torch

from parity.problem import Case, Loaders, grid, halves_of_pairs, loaders, pairs, relative_error, target
from parity.runs import Delivered, run_ddp, run_fsdp2, run_plain
from support.ranks import run_ranks

WORLD_SIZES = (1, 2, 4)
FETCHES = ("window", "batch")
SYNCS = ("last", "every")
REDUCING = ("wrapper", "pipeline", "backward")
HALVES = dict(zip(FETCHES, halves_of_pairs(), strict=True))
SOME = {fetch: pairs()[4 * place :: 8] for place, fetch in enumerate(FETCHES)}
MORE = {fetch: pairs()[2 * place :: 4] for place, fetch in enumerate(FETCHES)}
GRIDS = dict.fromkeys(FETCHES, grid())

# A sum of a few dozen float32 products of order 1: rounding errors of 2^-24 each, added over three layers.
TOLERANCE = 1e-6


def share_of(cases: dict[str, list[Case]], fetch: str, turn: int) -> list[Case]:
    """Every other one of `cases[fetch]`; those between are for the next turn."""
    return cases[fetch] if cases is GRIDS else cases[fetch][(FETCHES.index(fetch) + turn) % 2 :: 2]


def check(case: Case, everyone: Loaders, by_rank: list[Delivered]) -> None:
    exact = target(case, everyone)
    for rank, delivered in enumerate(by_rank):
        assert [window is None for window in delivered] == [window is None for window in exact], (case, rank)
        for window, (have, want) in enumerate(zip(delivered, exact, strict=True)):
            if want is None:
                continue
            error = relative_error(case, have, want)
            assert error < TOLERANCE, f"{case}, rank {rank}, window {window}: relative error {error:.2e}"
            for name, grad in have.items():
                first = by_rank[0][window][name]
                assert (grad is None and first is None) or torch.equal(grad, first), f"{name} differs between ranks"


@pytest.mark.parametrize("fetch", FETCHES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(
    "cases", [pytest.param(None, id="half"), pytest.param(grid(), id="grid", marks=pytest.mark.slow)]
)
def test_plain_module_delivers_the_target(cases: list[Case] | None, world_size: int, fetch: str) -> None:
    for case in cases or HALVES[fetch]:
        everyone = loaders(case, world_size)
        check(case, everyone, run_plain(case, everyone, fetch))


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [
        pytest.param(1, HALVES, id="1-quarter"),
        pytest.param(2, HALVES, id="2-quarter"),
        pytest.param(4, MORE, id="4-some"),
        pytest.param(2, GRIDS, id="2-grid", marks=pytest.mark.slow),
        pytest.param(4, GRIDS, id="4-grid", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("reducing", REDUCING)
@pytest.mark.parametrize("fetch", FETCHES)
def test_ddp_delivers_the_target(world_size: int, cases: dict[str, list[Case]], reducing: str, fetch: str) -> None:
    # What runs in DDP's backward needs a batch; the explicit mode lives without.
    taken = share_of(cases, fetch, REDUCING.index(reducing))
    problems = [(case, loaders(case, world_size, fewest=int(reducing != "pipeline"))) for case in taken]
    by_rank = run_ranks(world_size, run_ddp, problems, reducing, fetch)
    for index, (case, everyone) in enumerate(problems):
        check(case, everyone, [delivered[index] for delivered in by_rank])


@pytest.mark.parametrize(
    ("world_size", "cases"),
    [
        pytest.param(1, SOME, id="1-some"),
        pytest.param(2, HALVES, id="2-quarter"),
        pytest.param(4, SOME, id="4-some"),
        pytest.param(1, GRIDS, id="1-grid", marks=pytest.mark.slow),
        pytest.param(2, GRIDS, id="2-grid", marks=pytest.mark.slow),
        pytest.param(4, GRIDS, id="4-grid", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("fetch", FETCHES)
def test_fsdp2_delivers_the_target(world_size: int, cases: dict[str, list[Case]], sync: str, fetch: str) -> None:
    taken = share_of(cases, fetch, SYNCS.index(sync))
    problems = [(case, loaders(case, world_size, fewest=1)) for case in taken]
    by_rank = run_ranks(world_size, run_fsdp2, problems, sync, fetch)
    for index, (case, everyone) in enumerate(problems):
        check(case, everyone, [delivered[index] for delivered in by_rank])


def test_the_halves_have_all_pairs_and_each_every_value() -> None:
    assert sorted(map(str, [case for half in HALVES.values() for case in half])) == sorted(map(str, pairs()))
    for half in HALVES.values():
        for axis in ("micro_batches", "batches", "parameters", "reduction"):
            assert {getattr(case, axis) for case in half} == {getattr(case, axis) for case in grid()}
    for turn in (0, 1):
        shares = [case for fetch in FETCHES for case in share_of(HALVES, fetch, turn)]
        for axis in ("micro_batches", "batches", "parameters", "reduction"):
            assert {getattr(case, axis) for case in shares} == {getattr(case, axis) for case in grid()}


def test_the_grid_has_what_it_claims() -> None:
    """The cases that are easy to lose: a skipped window, an empty rank, a NaN loss, an unused parameter."""
    skipped = target(Case(1, "zero_weight", "plain", "mean"), loaders(Case(1, "zero_weight", "plain", "mean"), 1))
    assert None in skipped
    lengths = [len(loader) for loader in loaders(Case(3, "early_end", "plain", "mean"), 4)]
    assert lengths == [4, 6, 6, 0]
    unused = target(Case(1, "equal", "unused", "mean"), loaders(Case(1, "equal", "unused", "mean"), 1))
    assert unused[0]["branch.weight"] is None
