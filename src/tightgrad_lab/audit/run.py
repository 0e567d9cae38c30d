"""Runs all scenarios on 1 to W local ranks and gives the findings."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tightgrad_lab.audit.crash import is_from_another_rank, where_it_failed
from tightgrad_lab.audit.diagnosis import Finding, diagnose
from tightgrad_lab.audit.observe import RankReport, observe
from tightgrad_lab.audit.scenario import Scenario, scenarios
from tightgrad_lab.audit.specification import Specification, load
from tightgrad_lab.errors import ArgumentError, RunError
from tightgrad_lab.training.ranks import Rank, Send, run_ranks, under_torchrun

RANKS = (1, 2, 4)
ALONE = (
    "the loop uses nothing of torch.distributed, so each rank was compared as a process on its own; say RANKS = (1,) "
    "to run it once."
)
TIMEOUT_SECONDS = 60.0

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        findings: empty if nothing is wrong.
        steps: how many optimizer steps were compared, over all ranks.
        scenarios: under which circumstances.
        notes: what else a person should know.
    """

    findings: tuple[Finding, ...]
    steps: int
    scenarios: tuple[Scenario, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.findings


def audit(path: Path, ranks: Sequence[int] | None = None, report: Report | None = None) -> Audit:
    """Audit the loop in a file.

    Args:
        path: of the file.
        ranks: numbers of local ranks, each tried over gloo; if None, what the file's RANKS says, or 1, 2 and 4.
        report: told of the share that is done, and what is being done.

    Raises:
        ArgumentError: the file is not one that can be audited, its loop raises (the message says where), or its ranks
            wait for each other for ever.
    """
    return audit_files([path], ranks, report)[path]


def audit_files(
    paths: Sequence[Path], ranks: Sequence[int] | None = None, report: Report | None = None
) -> dict[Path, Audit]:
    """Audit several files, one after another in the same processes; as `audit` otherwise."""
    if under_torchrun():
        raise ArgumentError("audit starts ranks of its own; leave torchrun out.")
    specifications = {path: load(path) for path in paths}
    chosen = {path: _scenarios(found, ranks or found.ranks or RANKS) for path, found in specifications.items()}
    seen: dict[str, list[RankReport]] = {str(path): [] for path in paths}
    done = 0
    total = sum(map(len, chosen.values()))

    crashes: list[str] = []

    def receive(message: tuple[str, RankReport | str]) -> None:
        nonlocal done
        path, found = message
        if isinstance(found, str):
            crashes.append(found)
            return
        seen[path].append(found)
        if found.rank == 0:
            done += 1
            if report is not None:
                report(done / total, chosen[Path(path)][found.scenario].name)

    for count in dict.fromkeys(one.ranks for found in chosen.values() for one in found):
        words = f"{count} rank{'s' if count > 1 else ''}"
        if report is not None:
            report(done / total, f"starting {words}")
        own = [
            (str(path), [(place, one) for place, one in enumerate(found) if one.ranks == count])
            for path, found in chosen.items()
        ]
        try:
            run_ranks(count, _observe_all, (own,), receive, timeout_seconds=TIMEOUT_SECONDS)
        except RunError as error:
            own_error = next((one for one in crashes if not is_from_another_rank(one)), None)
            raise ArgumentError(f"with {words}: {own_error or (crashes or [str(error)])[0]}") from error
        here = sum(chosen[Path(path)][one.scenario].ranks == count for path, found in seen.items() for one in found)
        if here < count * sum(len(ahead) for _, ahead in own):
            raise ArgumentError(
                f"with {words}: train ended its process before the audit had seen all of it; let train return (is "
                "there an os._exit?)."
            )
    return {path: _audit(found, seen[str(path)], specifications[path].partial) for path, found in chosen.items()}


def _audit(found: list[Scenario], reports: list[RankReport], partial: str) -> Audit:
    steps = sum(len(one.observations) for one in reports)
    alone = any(one.alone for one in reports)
    return Audit(tuple(diagnose(found, reports, partial)), steps, tuple(found), (ALONE,) if alone else ())


def _scenarios(specification: Specification, ranks: Sequence[int]) -> list[Scenario]:
    return [
        scenario
        for count in dict.fromkeys(ranks)
        for scenario in scenarios(
            count,
            accumulates=specification.accumulates,
            clips=specification.clips,
            epochs=specification.epochs,
        )
    ]


def _observe_all(rank: Rank, send: Send, work: list[tuple[str, list[tuple[int, Scenario]]]]) -> None:
    """As under torchrun: the process group stands, and the environment says so. What loops print is not shown."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # in models as small as an audit's, threads above all wait for each other
    os.environ.update(RANK=str(rank.rank), LOCAL_RANK=str(rank.rank), WORLD_SIZE=str(rank.ranks))
    os.environ.update(LOCAL_WORLD_SIZE=str(rank.ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    os.environ.update(GROUP_RANK="0", TORCHELASTIC_RUN_ID="audit", ACCELERATE_USE_CPU="1", OMP_NUM_THREADS="1")
    dist.destroy_process_group = _nothing  # the group stands, and the next scenario needs it
    dist.init_process_group = _nothing
    for path, chosen in work:
        try:
            specification = load(Path(path))
            for place, scenario in chosen:
                send((path, observe(specification, place, scenario, rank.rank)))
        except (Exception, SystemExit) as error:
            send((path, where_it_failed(error, Path(path))))
            raise


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


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
