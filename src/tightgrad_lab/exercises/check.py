"""Grades a student's file in a process of its own, with a time limit."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tightgrad_lab.exercises import words
from tightgrad_lab.exercises.catalogue import sheet
from tightgrad_lab.exercises.child import WAITING_SECONDS
from tightgrad_lab.exercises.words import Words

IMPORT_SECONDS = 60.0
"""What starting Python and importing torch may take on a busy machine, before the limit on grading begins."""
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in', re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """What became of a student's file.

    Args:
        number: of the exercise.
        seed: of the cases.
        cases: that were asked.
        remarks: what is wrong, nothing if the answer is right.
        printed: the first lines that the program printed while it was graded.
    """

    number: int
    seed: int
    cases: int
    remarks: tuple[Words, ...]
    printed: str = ""

    @property
    def passed(self) -> bool:
        """Whether the answer is right."""
        return not self.remarks


def check(number: int, path: Path, seed: int | None = None, seconds: float | None = None) -> Verdict:
    """Grade a file; the cases are drawn anew each time unless a seed is given.

    Args:
        number: of the exercise.
        path: of the student's file.
        seed: that a verdict printed, to see the same cases again.
        seconds: of processor time that grading may take; None leaves it to the exercise.
    """
    sheet(number)
    seed = secrets.randbelow(10**6) if seed is None else seed
    path = path.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [str(number), str(path), str(seed), name, str(seconds or 0)]
        command = [sys.executable, "-m", "tightgrad_lab.exercises.child", *arguments]
        token = secrets.token_hex()
        code = _run(command, folder, IMPORT_SECONDS + WAITING_SECONDS, token)
        verdict, stack, errors = (_read(folder / one) for one in ("verdict.json", "stack", "errors"))
    found = json.loads(verdict) if verdict else {}
    if found.get("token") == token:  # else the student's program wrote it
        remarks = tuple(Words(*one) for one in found["remarks"])
        return Verdict(number, seed, found["cases"], remarks, found["printed"])
    if stack or code is None:
        remark = _endless(path, stack, seconds or sheet(number).exam().seconds)
    else:
        last = errors.strip().splitlines()[-1:]
        remark = Words(*(" ".join([one, *last]) for one in words.DIED.of(code=code)))
    return Verdict(number, seed, 0, (remark,))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _run(command: list[str], folder: Path, seconds: float, token: str) -> int | None:
    """Run a process and what it starts; return its exit code, or None if it had to be stopped.

    It reads the token, which it must put into its verdict, before the student's program can read anything.
    """
    source = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": source}
    with (folder / "errors").open("wb") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,  # what a program writes beside itself goes away with it
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        try:
            process.communicate(token.encode(), seconds)
            return process.returncode
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what the student's program has started
            process.wait()


def _endless(path: Path, stack: str, seconds: float) -> Words:
    """Say where a program was that took too long."""
    lines = [int(line) for name, line in _FRAME.findall(stack) if name == str(path)]
    if not lines:
        return words.LOOP_ELSEWHERE.of(seconds=f"{seconds:g}")
    text = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()[lines[0] - 1].strip()
    return words.LOOP.of(seconds=f"{seconds:g}", line=lines[0], text=text)
