"""What a rule says."""

from dataclasses import dataclass
from typing import Any

import tightgrad as tg


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a run.

    Args:
        problem: its id.
        evidence: the numbers that say so.
        cure: what to do.
        step: where it shows first.
        plan: the run's plan, changed as the cure says; None if the cure is not a matter of the plan.
    """

    problem: str
    evidence: str
    cure: str
    step: int
    plan: tg.Plan | None = None

    def to_row(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "problem": self.problem,
            "evidence": self.evidence,
            "cure": self.cure,
            "step": self.step,
            "plan": None if self.plan is None else self.plan.to_config(),
        }
