"""The language cases, text classification and translation."""

from tightgrad_lab.report.study import Study, study_pair

NAME = "language_cases"
PAIR = study_pair(
    NAME,
    Study(NAME, "text", ("", "b"), ("", "b", "c"), is_alone=False),
    Study(NAME, "translation", ("c", "d"), ("d", "e", "f"), is_alone=False),
)
