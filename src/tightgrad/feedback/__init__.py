"""Feedback: what compression leaves out is sent later. A line here registers the method under its card's id."""

from tightgrad.feedback.ef21 import EF21 as EF21
from tightgrad.feedback.error_feedback import ErrorFeedback as ErrorFeedback
from tightgrad.feedback.momentum_correction import MomentumCorrection as MomentumCorrection
