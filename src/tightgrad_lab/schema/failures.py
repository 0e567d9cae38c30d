"""The rows and the figure of common_failures."""

from typing import Any, TypedDict


class FailureRow(TypedDict):
    """One failure before and after the cure that the doctor names; lists are by seed, words the first seed's."""

    problem: str
    metric: str
    before: list[float | None]
    after: list[float | None]
    named: int
    cured: int
    also_said: list[str]
    said_after: list[str]
    evidence: str | None
    cure: str | None
    step: int | None
    plan_before: dict[str, Any]
    plan_after: dict[str, Any] | None


class FailureCurve(TypedDict):
    """One field of a run's records; `ended` when the run failed."""

    steps: list[int]
    values: list[float]
    ended: bool


class FailureCurves(TypedDict):
    """One seed's run before and after the cure."""

    before: FailureCurve
    after: FailureCurve


class FailurePanel(TypedDict):
    """One failure's curves; a pair for each seed."""

    problem: str
    field: str
    runs: list[FailureCurves]


class CommonFailuresFigure(TypedDict):
    """The failures that the figure shows."""

    panels: list[FailurePanel]
