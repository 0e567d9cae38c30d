"""Conservation: all that was put in is all that was sent plus what is left."""

import pytest

from conformance.cases import CODECS, FEEDBACKS, REDUCERS
from conformance.turns import one_reducer_in_turn, split
from tightgrad.testing import FeedbackTests

IN_TURN, OTHERS = split(FeedbackTests.test_feedback, one_reducer_in_turn)


class TestFeedback(FeedbackTests):
    feedback = FEEDBACKS
    reducers = REDUCERS
    codecs = CODECS
    test_feedback = IN_TURN


@pytest.mark.slow
class TestFeedbackWithOtherReducers(TestFeedback):
    test_feedback = OTHERS
    test_memory = None
