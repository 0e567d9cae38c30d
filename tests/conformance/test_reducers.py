"""What every pair of codec and reducer must do on 1 to 4 ranks; on one rank and one more number unless `slow`."""

import pytest

import tightgrad as tg
from conformance.cases import CODECS, REDUCERS
from conformance.turns import all_variants_at_once, one_world_size_in_turn, split
from conformance.wire_bytes import dense_nbytes
from tightgrad.core.errors import IncompatiblePlanError
from tightgrad.core.protocols import Codec
from tightgrad.testing import ReduceCase, ReducerTests
from tightgrad.testing.reducer_checks import SHAPES
from tightgrad.testing.reducer_checks import dense_nbytes as shipped_dense_nbytes

IN_TURN, OTHERS = split(ReducerTests.test_reducer, one_world_size_in_turn)


class TestReducers(ReducerTests):
    reducers = REDUCERS
    codecs = (None, *CODECS)
    test_reducer = all_variants_at_once(IN_TURN)


@pytest.mark.slow
class TestReducersAtOtherSizes(TestReducers):
    test_reducer = all_variants_at_once(OTHERS)


@pytest.mark.parametrize("codec", [None, *CODECS], ids=repr)
@pytest.mark.parametrize("case", REDUCERS, ids=lambda case: repr(case.reducer))
def test_a_pair_works_or_is_refused_with_a_reason(case: ReduceCase, codec: Codec | None) -> None:
    reducer = case.reducer
    reason = reducer.refuses(codec)
    if reason is None:
        assert tg.Compress(codec, reducer).reducer == reducer
        return
    with pytest.raises(IncompatiblePlanError) as error:
        tg.Compress(codec, reducer)
    assert reason in str(error.value)
    others = [other.reducer for other in REDUCERS if other.reducer != reducer]
    assert any(other.card.id in reason for other in others), "the reason names no way out"


def test_the_dense_bytes_are_those_of_the_documentation() -> None:
    for world_size in (1, 2, 3, 4):
        assert shipped_dense_nbytes(world_size) == dense_nbytes(SHAPES, None, world_size, 0)
