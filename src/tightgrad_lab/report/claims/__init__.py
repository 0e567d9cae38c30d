"""The claims of the course, each with a verdict from the measured rows."""

from tightgrad_lab.report.claims.judged import JUDGES, Judged, judged

__all__ = ["JUDGES", "Judged", "judged"]
