"""The process in which a student's file runs: its arguments are number, file, seed, a folder, and a limit in seconds.

It leaves `verdict.json` in the folder, and `stack` where the program was if it took too long.
"""

import faulthandler
import io
import json
import os
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path

from tightgrad_lab.exercises.catalogue import sheet
from tightgrad_lab.exercises.grade import grade
from tightgrad_lab.exercises.load import StudentError, load

WAITING_SECONDS = 50.0
"""That grading may take by the clock."""


class Kept(io.TextIOBase):
    """Keeps the first characters of what a program prints."""

    def __init__(self, most: int = 2000) -> None:
        self.text = ""
        self._most = most

    def write(self, text: str) -> int:
        """Keep what still fits."""
        self.text += text[: self._most - len(self.text)]
        return len(text)


def main(number: str, path: str, seed: str, folder: str, seconds: str) -> None:
    """Grade a file and write the verdict."""
    token = sys.stdin.read()
    exam = sheet(int(number)).exam()
    limit = float(seconds) or exam.seconds
    sys.path.append(str(Path(path).parent))  # modules that the student has put beside the file
    with (Path(folder) / "stack").open("w", encoding="utf-8") as stack:
        # An endless loop uses up processor time, also on a busy machine; one that sleeps or waits only passes time.
        faulthandler.register(signal.SIGPROF, file=stack, chain=True)
        signal.setitimer(signal.ITIMER_PROF, limit)
        faulthandler.dump_traceback_later(WAITING_SECONDS, exit=True, file=stack)
        printed = Kept()
        with redirect_stdout(printed):
            try:
                cases, remarks = grade(load(Path(path)), exam, int(seed))
            except StudentError as error:
                cases, remarks = 0, [error.words]
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
    verdict = {"token": token, "cases": cases, "remarks": remarks, "printed": printed.text}
    (Path(folder) / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # threads that the student's program has left running would keep it waiting
