"""Image classification; the flow of a step and what each combination does."""

from tightgrad_lab.report.study import Study, study_pair

NAME = "image_case"
PAIR = study_pair(NAME, Study(NAME, "image", ("", "b"), ("", "b", "c")))
