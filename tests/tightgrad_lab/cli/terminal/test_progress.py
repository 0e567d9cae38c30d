"""Where stderr is no terminal, long commands say now and then how far they are, and draw no bar."""

from types import SimpleNamespace

import pytest

from tightgrad_lab.cli.terminal import progress
from tightgrad_lab.schema import NUMBERS, STUDIES

JOB = SimpleNamespace(case="image", combination="clip", seed=0, settings=SimpleNamespace(variant="mlp"))


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def message(step):
    return SimpleNamespace(job=0, row=None, unchanged=False, progress=SimpleNamespace(step=step, steps=90))


def test_of_runs(clock, capsys):
    with progress.job_progress([JOB, JOB]) as receive:
        for seconds, step in ((0, 10), (1, 20), (4.9, 30), (5, 40), (30, 50)):
            clock[0] = seconds
            receive(message(step))
    out, err = capsys.readouterr()
    assert out == ""
    lines = [f"0 of 2 runs; image clip seed 0, step {step} of 90" for step in (10, 40, 50)]
    assert err.splitlines() == lines


@pytest.mark.parametrize("name", [next(iter(NUMBERS)), *STUDIES])
def test_of_experiments(clock, capsys, name):
    with progress.experiment_progress([name]) as (_, start):
        report = start(name)
        report(0.1, "left out, too soon")
        clock[0] = 6.0
        report(0.5, "two [of] four")
    title = progress.titled(name)
    assert capsys.readouterr().err.splitlines() == [
        f"0 of 1 experiments; {title}",
        f"0 of 1 experiments; {title}: 50%, two [of] four",
    ]


def test_of_shares(clock, capsys):
    with progress.share_progress("audit x") as report:
        report(0.25, "1 rank")
        report(0.30, "too soon")
    assert capsys.readouterr().err == "audit x: 25%, 1 rank\n"
