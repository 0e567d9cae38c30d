"""Runs many damaged inputs in a child process that may neither take much memory nor stand still.

    python -m faults.guarded MODULE COUNT SEED

`MODULE.attempts(seed)` yields functions without end, each of which tries one damaged input: it returns what came of
it, and raises where that is not allowed. A line of JSON with the counts and the first failures goes to stdout.
"""

import faulthandler
import importlib
import itertools
import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from support.programs import run_program

MORE_NBYTES = 512 * 2**20  # the inputs have a few kilobytes
SECONDS_EACH = 10  # of computing, however busy the machine is
MOST_SECONDS_EACH = 300  # of waiting, for what stands still without computing
MOST_FAILURES = 5


def run(module: str, count: int, seed: int, seconds: float) -> dict[str, Any]:
    """Try `count` damaged inputs in a child process; its report."""
    code = "from faults.guarded import main\nmain()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = run_program(code, Path(folder), environment, module, str(count), str(seed), seconds=seconds)
    assert done.returncode == 0, f"the child died with {done.returncode}:\n{done.stderr[-4000:]}"
    return json.loads(done.stdout)


def _stand_still(signum: int, frame: Any) -> None:
    raise TimeoutError(f"one input took more than {SECONDS_EACH} s of computing")


def _limit_memory() -> None:
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MORE_NBYTES, in_use + MORE_NBYTES))


def main() -> None:
    module, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    failures = []
    attempts = importlib.import_module(module).attempts(seed)
    first = next(attempts)  # what is only made once is made before the limit is set
    signal.signal(signal.SIGPROF, _stand_still)
    _limit_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number, attempt in enumerate(itertools.islice(itertools.chain([first], attempts), count)):
        signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)
        faulthandler.dump_traceback_later(MOST_SECONDS_EACH, exit=True)  # where no signal is heard
        try:
            outcomes[attempt()] += 1
        except BaseException:
            outcomes["FAILURE"] += 1
            failures.append(f"number {number}:\n{traceback.format_exc()}")
            if len(failures) >= MOST_FAILURES:
                break
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"outcomes": dict(outcomes), "failures": failures, "grown_nbytes": grown * 1024}))


if __name__ == "__main__":
    main()
