"""What runs every time has every check, with every method on either side and every size; the rest is not lost."""

from collections.abc import Callable, Iterable

import pytest

from conformance.test_codecs import TestCodecs as Codecs
from conformance.test_codecs import TestCodecsAtOtherScales as CodecsLater
from conformance.test_feedback import TestFeedback as Feedback
from conformance.test_feedback import TestFeedbackWithOtherReducers as FeedbackLater
from conformance.test_reducers import TestReducers as Reducers
from conformance.test_reducers import TestReducersAtOtherSizes as ReducersLater
from conformance.turns import run_all
from tightgrad.testing import CodecTests, FeedbackTests, ReducerTests


def runs(suite: object, test: str, of: type | None = None) -> list[tuple[str, Callable[[], None]]]:
    """With each of those that run together."""
    found = getattr(of or suite, test).cases(suite)
    return [one for name, run in found for one in (run.args[0] if run.func is run_all else [(name, run)])]


@pytest.mark.parametrize(
    ("quick", "slow", "every", "test"),
    [
        (Codecs, CodecsLater, CodecTests, "test_claims"),
        (Feedback, FeedbackLater, FeedbackTests, "test_feedback"),
        (Reducers, ReducersLater, ReducerTests, "test_reducer"),
    ],
)
def test_nothing_is_lost_and_nothing_runs_twice(quick: type, slow: type, every: type, test: str) -> None:
    quickly, slowly = ([name for name, _ in runs(suite(), test)] for suite in (quick, slow))
    assert sorted(quickly + slowly) == sorted(name for name, _ in runs(quick(), test, every))
    assert 0 < len(quickly) < len(set(quickly + slowly)) == len(quickly + slowly)


def sides(found: Iterable[tuple[str, Callable[[], None]]], *of: Callable[..., object]) -> set[tuple[object, ...]]:
    """The checks with what each function of their arguments gives."""
    return {(run.func.__name__, *(side(*run.args) for side in of)) for _, run in found}  # type: ignore[attr-defined]


def test_each_check_keeps_each_codec_and_each_reducer_at_each_number_of_ranks() -> None:
    quick, every = runs(Reducers(), "test_reducer"), runs(Reducers(), "test_reducer", ReducerTests)
    assert sides(quick, lambda pair, *size: pair.codec) == sides(every, lambda pair, *size: pair.codec)
    with_size = sides(quick, lambda pair, *size: (pair.case.reducer, *size))
    assert with_size == sides(every, lambda pair, *size: (pair.case.reducer, *size))


def test_each_check_of_a_pair_runs_on_several_ranks() -> None:
    quick, every = runs(Reducers(), "test_reducer"), runs(Reducers(), "test_reducer", ReducerTests)

    def several(found: list[tuple[str, Callable[[], None]]]) -> set[tuple[object, ...]]:
        return sides([case for case in found if case[1].args[1:] != (1,)], lambda pair, *size: pair)  # type: ignore[attr-defined]

    assert several(quick) == several(every)


def test_each_feedback_keeps_each_codec_and_each_reducer() -> None:
    quick, every = runs(Feedback(), "test_feedback"), runs(Feedback(), "test_feedback", FeedbackTests)
    for other in ("codec", "reducer"):
        both = [lambda sending, *size: sending.case, lambda sending, *size, other=other: getattr(sending, other)]
        assert sides(quick, *both) == sides(every, *both)


def test_each_codec_is_averaged_at_a_scale_and_each_scale_is_used() -> None:
    quick, every = (
        [case for case in runs(Codecs(), "test_claims", of) if case[0].startswith("unbiased-")]
        for of in (None, CodecTests)
    )
    for side in (lambda codec, scale: codec, lambda codec, scale: scale):
        assert sides(quick, side) == sides(every, side)


def test_variants_that_run_together_are_all_there_and_name_the_one_that_fails() -> None:
    together, every = list(Codecs.test_codec.cases(Codecs())), runs(Codecs(), "test_codec", CodecTests)
    assert [name for name, _ in runs(Codecs(), "test_codec")] == [name for name, _ in every]
    assert 10 * len(together) < 2 * len(every)

    def fails() -> None:
        raise AssertionError("not right")

    with pytest.raises(AssertionError, match="not right") as error:
        run_all([("good", list), ("bad", fails)])
    assert error.value.__notes__ == ["in bad"]
