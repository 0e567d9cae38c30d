"""A script on 1 to W ranks, and everything that was found."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tightgrad_lab.audit.script.finding import Remark
from tightgrad_lab.audit.script.judge import judge, merged
from tightgrad_lab.audit.script.launch import run_ranks_of
from tightgrad_lab.audit.script.settings import Settings
from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.training.ranks import under_torchrun

RANKS = (1, 2)
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class ScriptAudit:
    """What was found in a script.

    Args:
        remarks: faults first.
        steps, backwards, targets: how many were seen, over all ranks and runs.
        changes: what was changed around the script, in words.
    """

    remarks: tuple[Remark, ...]
    steps: int
    backwards: int
    targets: int
    changes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not any(one.wrong for one in self.remarks)

    def rows(self) -> list[dict[str, Any]]:
        """The remarks as JSON values."""
        return [asdict(one) for one in self.remarks]


def audit_script(
    settings: Settings, ranks: Sequence[int] | None, report: Report = lambda done, words: None
) -> ScriptAudit:
    """Run a script on each of these numbers of ranks, and judge what it did.

    Args:
        settings: which script, and how.
        ranks: numbers of local ranks; 1 and 2 if None.
        report: told of the share that is done, and of what is being done.

    Raises:
        ArgumentError: it cannot be run; the message has file and line of the script's code.
    """
    if under_torchrun():
        raise ArgumentError("audit starts ranks of its own; leave torchrun out.")
    settings.check()
    found: list[Remark] = []
    changes: list[str] = []
    steps = backwards = targets = 0
    chosen = list(dict.fromkeys(ranks or RANKS))
    for place, count in enumerate(chosen):
        ledgers = run_ranks_of(settings, count, lambda done, words: report((place + done) / len(chosen), words))  # noqa: B023
        found += judge(ledgers)
        changes += [words for ledger in ledgers for words in ledger.remarks]
        steps += sum(len(ledger.steps) for ledger in ledgers)
        backwards += sum(len(ledger.backwards) for ledger in ledgers)
        targets += sum(c.targets for ledger in ledgers for b in ledger.backwards for c in b.calls)
    return ScriptAudit(tuple(merged(found)), steps, backwards, targets, tuple(dict.fromkeys(changes)))
