"""Pair 15: image classification; the flow of a step and what each combination does."""

from tightgrad_lab.report.study import Study, study_pair

PAIR = study_pair(15, Study(15, "image", ("15", "15b"), ("15", "15b", "15c")))
