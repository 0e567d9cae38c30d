"""Runs all scenarios on 1 to W local ranks and gives the findings."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tightgrad_lab.audit.diagnosis import Finding, diagnose
from tightgrad_lab.audit.observe import RankReport, observe
from tightgrad_lab.audit.scenario import Scenario, scenarios
from tightgrad_lab.audit.specification import load
from tightgrad_lab.errors import RunError
from tightgrad_lab.training.ranks import Rank, Send, run_ranks

RANKS = (1, 2, 4)
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        findings: empty if nothing is wrong.
        steps: how many optimizer steps were compared, over all ranks.
        scenarios: under which circumstances.
    """

    findings: tuple[Finding, ...]
    steps: int
    scenarios: tuple[Scenario, ...]

    @property
    def ok(self) -> bool:
        return not self.findings


def audit(path: Path, ranks: Sequence[int] = RANKS, report: Callable[[float, str], None] | None = None) -> Audit:
    """Audit the loop in a file.

    Args:
        path: of the file.
        ranks: numbers of local ranks, each tried over gloo.
        report: told of the share that is done, and what is being done.

    Raises:
        ArgumentError: the file is not one that can be audited.
        RunError: its loop raises, or its ranks wait for each other for ever.
    """
    specification = load(path)
    chosen: list[Scenario] = []
    reports: list[RankReport] = []
    for number, count in enumerate(ranks):
        if report is not None:
            report(number / len(ranks), f"{count} rank{'s' if count > 1 else ''}")
        own = scenarios(count, accumulates=specification.accumulates, clips=specification.clips)
        first = len(chosen)
        try:
            run_ranks(count, _observe_all, (str(path), first, own), reports.append, timeout_seconds=TIMEOUT_SECONDS)
        except RunError as error:
            raise RunError(f"with {count} rank{'s' if count > 1 else ''}: {error}") from error
        chosen += own
    found = diagnose(chosen, reports, specification.partial)
    steps = sum(len(one.observations) for one in reports)
    return Audit(tuple(found), steps, tuple(chosen))


def _observe_all(rank: Rank, send: Send, path: str, first: int, chosen: list[Scenario]) -> None:
    """As under torchrun: the process group stands, and the environment says so."""
    os.environ.update(RANK=str(rank.rank), LOCAL_RANK=str(rank.rank), WORLD_SIZE=str(rank.ranks))
    os.environ.update(LOCAL_WORLD_SIZE=str(rank.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    specification = load(Path(path))
    for place, scenario in enumerate(chosen):
        send(observe(specification, first + place, scenario, rank.rank))


def rows(found: Audit) -> list[dict[str, Any]]:
    """The findings as JSON values."""
    return [
        {
            "cause": finding.cause,
            "where": finding.where,
            "gain": finding.gain,
            "cosine": finding.cosine,
            "detail": finding.detail,
        }
        for finding in found.findings
    ]
