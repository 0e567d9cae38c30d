"""Ranks of `run_in_network`, forked from a server that has imported torch: not what that costs is asked."""

import ctypes
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import IO, Any

import pytest

from tightgrad_lab.forking import process_context

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # of sched.h; Python has them from 3.12 on
MS_REC, MS_SLAVE, MNT_DETACH = 1 << 14, 1 << 19, 2  # of sys/mount.h


@contextmanager
def forked() -> Iterator[None]:
    """Inside, `run_in_network` starts its ranks so."""
    with pytest.MonkeyPatch.context() as patch:
        instead = SimpleNamespace(Popen=ForkedInNamespace, PIPE=subprocess.PIPE)
        patch.setattr("tightgrad_lab.network.ranks.subprocess", instead)
        yield


class ForkedInNamespace:
    """Stands in for `subprocess.Popen`: runs `ip netns exec NAMESPACE python -m MODULE`."""

    def __init__(self, command: list[str], *, stderr: IO[bytes], env: Mapping[str, str], **others: Any) -> None:
        assert others == {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True}
        assert [*command[:3], *command[4:6]] == ["ip", "netns", "exec", sys.executable, "-m"]
        context = process_context()
        read, told = context.Pipe(duplex=False)
        heard, written = context.Pipe(duplex=False)
        args = (command[3], command[6], dict(env), read, written, stderr.name)
        self._process = context.Process(target=_run, args=args)
        self._process.start()
        self.stdin, self.stdout = os.fdopen(os.dup(told.fileno()), "wb"), os.fdopen(os.dup(heard.fileno()), "rb")
        for end in (read, told, heard, written):
            end.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _run(
    namespace: str, module: str, environment: Mapping[str, str], read: Connection, written: Connection, log: str
) -> None:
    os.setsid()
    said = os.open(log, os.O_WRONLY | os.O_APPEND)
    for file, number in ((read.fileno(), 0), (written.fileno(), 1), (said, 2)):
        os.dup2(file, number)
    for end in (read, written):
        end.close()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    _enter(namespace)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _enter(namespace: str) -> None:
    """As `ip netns exec` does: take the network, and a /sys that shows its interfaces."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{namespace}", "rb") as file:
        _checked(libc.setns(file.fileno(), CLONE_NEWNET))
    _checked(libc.unshare(CLONE_NEWNS))
    _checked(libc.mount(b"", b"/", b"none", ctypes.c_ulong(MS_SLAVE | MS_REC), None))
    libc.umount2(b"/sys", MNT_DETACH)  # where nothing is mounted there, nothing has to go
    _checked(libc.mount(namespace.encode(), b"/sys", b"sysfs", ctypes.c_ulong(0), None))


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
