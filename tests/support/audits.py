"""Audits many small scripts from one process that has loaded torch.

Each rank is a fork of it, so that a script takes a fraction of a second.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import tightgrad_lab.audit.script.child as child
import tightgrad_lab.audit.script.surroundings.ways_round  # noqa: F401
from support.waiting import patience
from tightgrad_lab.audit.script import Settings, launch
from tightgrad_lab.audit.script.finding import Remark
from tightgrad_lab.audit.script.judge import judge
from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.forking import process_context

Remarks = dict[str, list[dict[str, Any]]]
"""What is said of each function of a script, by its name."""


def audited(script: Path, ranks_of: Mapping[str, int]) -> Remarks:
    """Audit functions of a script, each on so many ranks."""
    context = process_context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_audit_all, args=(str(script), dict(ranks_of), sender))
    process.start()
    sender.close()
    try:
        assert receiver.poll(patience(300)), "the audits have not come to an end"
        found: Remarks = receiver.recv()
        return found
    except EOFError:
        process.join()
        raise AssertionError(f"the audits ended with exit code {process.exitcode}; their error is above") from None
    finally:
        process.kill()
        process.join()


def _audit_all(script: str, ranks_of: Mapping[str, int], sender: Connection) -> None:
    sender.send({name: remarks_of(script, name, ranks) for name, ranks in ranks_of.items()})


def forked(folder: Path, rank: int, ranks: int) -> int:
    """Start one rank."""
    number = os.fork()
    if number:
        return number
    try:
        os.environ.update(launch._environment(rank, ranks, 0, launched=ranks > 1, cuda=False))
        os.environ["TIGHTGRAD_PARENT"] = str(os.getppid())
        log = os.open(folder / f"log.{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.modules["__main__"] = ModuleType("__main__")
        child.main(folder)
    finally:
        os._exit(1)


def remarks_of(script: str, name: str, ranks: int) -> list[dict[str, Any]]:
    """What is said of one function of a script."""
    settings = Settings(script, arguments=(name,), steps=6)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "settings.json").write_text(settings.to_json(), encoding="utf-8")
        for number in [forked(folder, rank, ranks) for rank in range(ranks)]:
            os.waitpid(number, 0)
        try:
            ledgers = launch._ledgers(folder, settings, ranks, launched=ranks > 1, cuda=False)
        except ArgumentError as error:
            return [asdict(Remark("error", str(error), "", ""))]
        return [asdict(one) for one in judge(ledgers)]
