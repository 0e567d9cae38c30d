"""What the audit once got wrong: a file that crashes, findings that hid each other, loops of one process."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.waiting import patience
from tightgrad_lab.audit.diagnosis import diagnose
from tightgrad_lab.audit.observe import Observation, RankReport
from tightgrad_lab.audit.run import audit_files
from tightgrad_lab.audit.scenario import scenarios
from tightgrad_lab.cli import app as cli

CORPUS = Path(__file__).parents[3] / "examples" / "audit"
CRASHES = """
import torch
from torch import nn

RANKS = 1


def build_model():
    return nn.Linear(2, 1)


def make_batches(count, ragged):
    return [torch.randn(4, 2) for _ in range(count)]


def loss(model, batch):
    return model(batch).mean(), len(batch)


def train(model, batches):
    return helper({})


def helper(settings):
    return settings["lr"]
"""


def observation(window: int, explanations: tuple[str, ...], gain: float) -> Observation:
    return Observation(2, window, 0, gain, 1.0, 0.4, False, explanations, "float32", "float32")


def test_a_crash_exits_with_2_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text(CRASHES, encoding="utf-8")
    assert cli.run(["audit", str(path)]) == 2
    line = CRASHES.splitlines().index('    return settings["lr"]') + 1
    assert f"""{path}:{line} `return settings["lr"]`: KeyError: 'lr'""" in capsys.readouterr().err


def test_two_findings_that_share_words_are_both_kept() -> None:
    seen = (
        observation(0, ("local | K_t/K",), 1.04),
        observation(1, ("exact | K_t/K",), 0.6),
    )
    kinds = scenarios(2, accumulates=True, clips=False)
    steps = len(kinds[2].windows("flush"))
    causes = [finding.cause for finding in diagnose(kinds, [RankReport(2, 0, steps, "", seen, False, ())], "flush")]
    assert len(causes) == 2
    assert any(cause.startswith("ranks differ: no sync") for cause in causes)
    assert "0.60x on the last window: divided by the full K" in causes


def test_a_loop_of_one_process_is_not_accused_at_two_ranks() -> None:
    path = CORPUS / "correct_sam.py"
    found = audit_files([path], ranks=(2,))[path]
    assert found.ok
    assert found.steps > 0
    assert "uses nothing of torch.distributed" in found.notes[0]


def hear_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and what nohup starts SIGHUP; so does what these start."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def children(parent: int | str, name: str = "") -> list[str]:
    """Numbers of the processes that it has started, whose command line has this name in it."""
    found = subprocess.run(["pgrep", "-P", str(parent), "-f", name or "."], capture_output=True, text=True)
    return found.stdout.split()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_its_ranks_end_with_it(number: signal.Signals, code: int, tmp_path: Path) -> None:
    sleeps = CRASHES.replace("RANKS = 1", "RANKS = 2").replace(
        'return settings["lr"]', "__import__('time').sleep(3600)"
    )
    (tmp_path / "sleeps.py").write_text(sleeps, encoding="utf-8")
    command = [sys.executable, "-m", "tightgrad_lab.cli", "audit", str(tmp_path / "sleeps.py"), "--ranks", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts) as process:
        assert process.stderr is not None
        assert "starting 2 ranks" in process.stderr.readline()  # a line at once, though stderr is no terminal
        ranks: list[str] = []
        for _ in range(int(patience(60) * 10)):
            ranks = [rank for server in children(process.pid, "forkserver") for rank in children(server)]
            if len(ranks) == 2:
                break
            time.sleep(0.1)
        assert len(ranks) == 2
        process.send_signal(number)
        assert process.wait() == code
    assert not [rank for rank in ranks if Path(f"/proc/{rank}/cmdline").exists()]
