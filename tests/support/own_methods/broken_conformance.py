"""Tests of the broken methods, copied as test_broken.py."""

from broken import (
    Averaging,
    Boasting,
    Forgetful,
    Loose,
    Repeated,
    Roleless,
    Shared,
    Trusting,
    Uncut,
    Unregistered,
)
from half import Half

from tightgrad.testing import (
    ClipCase,
    ClipperTests,
    CodecTests,
    FeedbackCase,
    FeedbackTests,
    ReduceCase,
    ReducerTests,
)


class TestCodecs(CodecTests):
    codecs = (Uncut(), Shared(), Repeated(), Trusting(), Boasting(), Unregistered())


class TestClippers(ClipperTests):
    clippers = (ClipCase(Loose(1.0), limit="model"),)


class TestReducers(ReducerTests):
    reducers = (ReduceCase(Averaging()),)


class TestFeedback(FeedbackTests):
    feedback = (FeedbackCase(Forgetful()), FeedbackCase(Roleless()))
    codecs = (Half(),)
