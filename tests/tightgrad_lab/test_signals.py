"""A signal ends a command, its ranks and its workers, and none is lost."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest

from tightgrad_lab.cli import app
from tightgrad_lab.experiments.workers import run_all
from tightgrad_lab.forking import process_context
from tightgrad_lab.signals import ended_by_signals, interrupts_deferred
from tightgrad_lab.training import ranks


@pytest.fixture(autouse=True)
def hears_interrupts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_ranks_are_started_comes_when_they_are():
    reached = []

    def start():
        with interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
            reached.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    with pytest.raises(KeyboardInterrupt):
        start()
    assert signal.SIGINT in reached[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_started_there_keeps_the_interrupt_until_it_asks_for_it():
    program = (
        "import signal, sys; sys.stdin.read(1); print(int(signal.SIGINT in signal.sigpending()), flush=True)\n"
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT}); print('still here')"
    )
    with interrupts_deferred():
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.send_signal(signal.SIGINT)
    assert process.communicate(b"x")[0] == b"1\n"
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_as_an_exception_and_one_that_is_handled_elsewhere_is_left_alone(number):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as left, ended_by_signals(), ended_by_signals():
            signal.raise_signal(number)
        assert left.value.code == 128 + number
        assert signal.getsignal(number) == signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # as nohup does
        with ended_by_signals():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)


class Stubborn:
    """A rank that ends only when every rank has been killed."""

    killed = 0

    def __init__(self, ranks):
        self.ranks = ranks

    def kill(self):
        Stubborn.killed += 1

    def join(self):
        assert Stubborn.killed == self.ranks, "waited for one before all were killed"


def test_all_ranks_are_killed_before_one_is_waited_for(monkeypatch):
    class Context:
        processes = (Stubborn(3), Stubborn(3), Stubborn(3))

        def join(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(ranks, "start_processes", lambda *_, **__: Context())
    monkeypatch.setattr(Stubborn, "killed", 0)
    with pytest.raises(KeyboardInterrupt):
        ranks.run_ranks(3, print, (), print)
    assert Stubborn.killed == 3


def sleeps(seconds):
    time.sleep(seconds)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit(143)])
def test_workers_end_with_the_command_in_mid_job(end, monkeypatch):
    monkeypatch.setattr("tightgrad_lab.experiments.workers.usable_cores", lambda: 2)

    def report(share, words):
        raise end

    other = process_context().Process(target=sleeps, args=(3600,), daemon=True)
    other.start()
    try:
        before = set(active_children())
        with pytest.raises(type(end) if isinstance(end, SystemExit) else end):
            run_all(sleeps, [0, 3600], report)
        assert set(active_children()) <= before
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


@pytest.mark.parametrize(("raised", "code"), [(SystemExit(143), 143), (KeyboardInterrupt(), 130)])
def test_a_command_that_a_signal_ended_does_not_take_the_interpreter_down(raised, code, monkeypatch):
    def verb(*_, **__):
        raise raised

    class Command:
        main = staticmethod(verb)

    def gone(code):
        raise AssertionError(code)

    monkeypatch.setattr(app.typer.main, "get_command", lambda _: Command)
    monkeypatch.setattr(app, "leave_at_once", gone)
    with pytest.raises(AssertionError) as left:
        app.main(["audit"])
    assert left.value.args == (code,)


def test_what_was_printed_arrives_and_temporary_folders_go(tmp_path):
    program = (
        "import sys, tempfile; from tightgrad_lab.signals import leave_at_once\n"
        f"folder = tempfile.TemporaryDirectory(dir={str(tmp_path)!r})\n"
        "print('one'); leave_at_once(143)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "one\n", "")
    assert not list(tmp_path.iterdir())


def test_a_reader_that_is_gone_is_no_error_then():
    program = "from tightgrad_lab.signals import leave_at_once; print('x' * 100); leave_at_once(130)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, **pipes) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 130)
