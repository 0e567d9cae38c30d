"""Pair 17: forecasts of a time series."""

from tightgrad_lab.report.study import Study, study_pair

PAIR = study_pair(17, Study(17, "series", ("17", "17b"), ("17", "17b", "17c")))
