"""Which of very many like cases run each time; the others are `slow`.

Each choice keeps every check, and every method with each kind of the others.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from tightgrad.testing.feedback_checks import Sending
from tightgrad.testing.suites import Case, one_test

Choose = Callable[[list[Case]], list[Case]]
Test = Callable[..., None]


def split(test: Test, choose: Choose) -> tuple[Test, Test]:
    """Return a test of the cases that `choose` keeps, and one of the others."""
    found: Callable[[object], Iterable[Case]] = test.cases  # type: ignore[attr-defined]

    def others(suite: object) -> list[Case]:
        every = list(found(suite))
        kept = {name for name, _ in choose(every)}
        return [case for case in every if case[0] not in kept]

    return one_test(lambda suite: choose(list(found(suite)))), one_test(others)


def all_variants_at_once(test: Test) -> Test:
    """Return a test with one case for all variants of a check: pytest takes longer than most of them."""
    found: Callable[[object], Iterable[Case]] = test.cases  # type: ignore[attr-defined]

    def joined(suite: object) -> Iterable[Case]:
        for (check, subject), cases in itertools.groupby(found(suite), lambda case: (case[1].func, case[1].args[0])):  # type: ignore[attr-defined]
            name = f"{check.__name__.removeprefix('check_')}-{subject!r}"
            yield name, functools.partial(run_all, list(cases))

    return one_test(joined)


def run_all(cases: Sequence[Case]) -> None:
    """Run one case after the other; an error says whose it is."""
    for name, run in cases:
        try:
            run()
        except BaseException as error:
            error.add_note(f"in {name}")
            raise


def one_world_size_in_turn(every: list[Case]) -> list[Case]:
    """Keep a single rank, and one more number of ranks for all checks of a pair, another one for the next pair.

    Checks of a pair on as many ranks look at the same calls. The first pair of each reducer is tried with all numbers.
    """
    numbers: dict[object, int] = {}  # of pairs
    first: dict[object, object] = {}
    kept = []
    for name, run in every:
        pair, *world_size = run.args  # type: ignore[attr-defined]
        is_first = first.setdefault(pair.case.reducer, pair) == pair
        number = numbers.setdefault(pair, 2 + len(numbers) % 3)
        if is_first or world_size in ([], [1], [number]):
            kept.append((name, run))
    return kept


def one_scale_in_turn(every: list[Case]) -> list[Case]:
    """Keep one of the three scales at which a codec's draws are averaged, another one for the next codec."""
    unbiased = [case for case in every if case[0].startswith("unbiased-")]
    dropped = {name for number, (name, _) in enumerate(unbiased) if number % 3 != number // 3 % 3}
    return [case for case in every if case[0] not in dropped]


def in_turn(pairs: Sequence[tuple[object, object]]) -> set[int]:
    """Places that keep one right side for each left side, another one for the next; no right side is left out."""
    by_left: defaultdict[object, list[int]] = defaultdict(list)
    for place, (left, _) in enumerate(pairs):
        by_left[left].append(place)
    kept = {places[number % len(places)] for number, places in enumerate(by_left.values())}
    seen = {pairs[place][1] for place in kept}
    for place, (_, right) in enumerate(pairs):
        if right not in seen:
            seen.add(right)
            kept.add(place)
    return kept


def one_reducer_in_turn(every: list[Case]) -> list[Case]:
    """Keep one reducer for each feedback and codec, another one for the next; none is left out with any feedback.

    `test_combinations.py` has all of them together, for fewer steps.
    """
    sendings: list[Sending] = list(dict.fromkeys(run.args[0] for _, run in every))  # type: ignore[attr-defined]
    places = in_turn([((one.case, one.codec), (one.case, one.reducer)) for one in sendings])
    kept = {sendings[place] for place in places}
    return [case for case in every if case[1].args[0] in kept]  # type: ignore[attr-defined]
