"""Pair 16: the language cases, text classification and translation."""

from tightgrad_lab.report.study import Study, study_pair

PAIR = study_pair(
    16,
    Study(16, "text", ("16", "16b"), ("16", "16b", "16c")),
    Study(16, "translation", ("16c", "16d"), ("16d", "16e", "16f")),
)
