"""Scripts that `tightgrad audit` runs, forked from a server that has imported torch: not what that costs is asked.

Where a test runs the command in a process of its own, it starts them itself.
"""

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import forkserver
from typing import Any, BinaryIO

from tightgrad_lab.forking import process_context


def _parent() -> int:
    """The process that forks them, whose end is theirs."""
    forkserver.ensure_running()
    server: Any = forkserver._forkserver  # Python 3.11 to 3.14: nothing public says its number
    return int(server._forkserver_pid)


class ForkedModule:
    """Stands in for `subprocess.Popen` of `tightgrad_lab.audit.script.launch`: runs `python -m MODULE ARGUMENTS`."""

    def __init__(
        self, command: list[str], *, stdout: BinaryIO, env: Mapping[str, str], stdin: int, **others: Any
    ) -> None:
        assert others == {"stderr": subprocess.STDOUT, "start_new_session": True}
        context = process_context()
        environment = {**env, "TIGHTGRAD_PARENT": str(_parent())}
        args = (command[2:], os.getcwd(), environment, stdout.name, os.ttyname(stdin))
        self._process = context.Process(target=_run_module, args=args)
        self._process.start()
        self.pid = self._process.pid
        with suppress(ProcessLookupError):
            while os.getpgid(self.pid) != self.pid:  # it is ended as a group
                time.sleep(0.001)

    def poll(self) -> int | None:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:  # the server has it ended, and has not said so yet
            self._process.join()
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


def _run_module(command: list[str], where: str, environment: Mapping[str, str], log: str, terminal: str) -> None:
    os.setsid()
    given = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    said = os.open(log, os.O_WRONLY)
    for file, number in ((given, 0), (said, 1), (said, 2)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    os.chdir(where)
    sys.path[:0] = [where, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
