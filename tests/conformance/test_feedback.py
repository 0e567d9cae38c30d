"""Conservation: all that was put in is all that was sent plus what is left."""

from conformance.cases import CODECS, FEEDBACKS, REDUCERS
from tightgrad.testing import FeedbackTests


class TestFeedback(FeedbackTests):
    feedback = FEEDBACKS
    reducers = REDUCERS
    codecs = CODECS
