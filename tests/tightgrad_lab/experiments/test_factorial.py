"""What the factorial does when a rank fails."""

import os
import signal
from dataclasses import replace

import pytest

from tightgrad_lab.errors import RunError
from tightgrad_lab.experiments.factorial import COMBINATIONS, case_settings, make_jobs, run_jobs, without_compression
from tightgrad_lab.report.measured import stats
from tightgrad_lab.training.ranks import run_ranks


def test_compression_is_measured_against_the_same_without_it():
    assert without_compression("compress") == "none"
    assert without_compression("clip+accumulate+compress") == "clip+accumulate"
    assert without_compression("clip") == "clip"


def test_a_diverging_run_names_its_traceback(tmp_path):
    settings = replace(case_settings("image", full=False, seeds=1, epochs=2), batch_size=96, learning_rate=1e30)
    jobs = make_jobs("image", settings, 2, tmp_path, "tightgrad lab image")[:1]
    with pytest.raises(RunError) as caught:
        run_jobs(jobs, 2, lambda message: None)
    error = jobs[0].folder / "error.txt"
    assert str(caught.value).startswith("image none seed 0 failed: ")
    assert "\n" not in str(caught.value)
    assert str(error) in str(caught.value)
    assert error.read_text().startswith("Traceback")
    assert "NonFiniteGradientError" in error.read_text()
    assert not (jobs[0].folder / "summary.json").exists()


def _killed(rank, send):
    if rank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_rank_ends_the_run():
    with pytest.raises(RunError, match="rank 1 ended"):
        run_ranks(2, _killed, (), lambda message: None)


def _speak(rank, send, text):
    if rank.rank == 0:
        send(f"{text} of {rank.ranks}")


def test_messages_of_rank_0_arrive():
    heard = []
    run_ranks(2, _speak, ("hello",), heard.append)
    assert heard == ["hello of 2"]


def test_the_report_reads_the_combinations_that_are_run() -> None:
    """The report may not import the experiments, so both name them."""
    assert set(stats.COMBINATIONS) == set(COMBINATIONS)
