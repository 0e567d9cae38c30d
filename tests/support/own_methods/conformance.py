"""The package's tests, copied as test_half.py."""

from half import AtMost, Everyone, Half, Later, sent_nbytes

from tightgrad.testing import (
    ClipCase,
    ClipperTests,
    CodecTests,
    FeedbackCase,
    FeedbackTests,
    ReduceCase,
    ReducerTests,
)


class TestHalf(CodecTests):
    codecs = (Half(),)


class TestAtMost(ClipperTests):
    clippers = (ClipCase(AtMost(1.0), limit="model"),)


class TestEveryone(ReducerTests):
    reducers = (ReduceCase(Everyone(), sent_nbytes, nearness="exact", zeros_send_nothing=lambda codec: True),)


class TestLater(FeedbackTests):
    feedback = (FeedbackCase(Later()),)
    codecs = (Half(), *FeedbackTests.codecs)
