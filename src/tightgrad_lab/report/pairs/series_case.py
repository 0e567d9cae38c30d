"""Forecasts of a time series."""

from tightgrad_lab.report.study import Study, study_pair

NAME = "series_case"
PAIR = study_pair(NAME, Study(NAME, "series", ("", "b"), ("", "b", "c")))
