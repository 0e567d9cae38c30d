"""The command as `pip install tightgrad` brings it, without the lab."""

import os
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest

from tightgrad.plan.registry import cards
from tightgrad_command import main

PROGRAM = """
import sys
if {without!r}:
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name in {without!r}:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    sys.meta_path.insert(0, Missing())
from tightgrad_command import main
main([*{arguments!r}])
"""
ALONE = ("tightgrad_lab", "typer", "rich", "click")


def run(*arguments, without=ALONE):
    code = PROGRAM.format(arguments=arguments, without=without)
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)


def test_the_version_needs_neither_lab_nor_torch():
    done = run("--version", without=(*ALONE, "torch"))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tightgrad {version('tightgrad')}\n", "")


class WithoutLab:
    def find_spec(self, name, path=None, target=None):
        if name == "tightgrad_lab":
            raise ModuleNotFoundError(name=name)


@pytest.fixture
def without_lab(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "tightgrad_lab"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutLab(), *sys.meta_path])


def test_methods_are_listed_from_the_library_alone():
    listed = run("methods")
    assert listed.returncode == 0, listed.stderr
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [card.id for card in cards()]


def test_a_method_is_explained(without_lab, capsys):
    with pytest.raises(SystemExit) as left:
        main(["methods", "topk"])
    out, err = capsys.readouterr()
    assert (left.value.code, err) == (0, "")
    for part in ("topk (codec, tensor)", "use when", "avoid when", "codecs.TopK(density", "Examples:", ">>>"):
        assert part in out


def test_an_unknown_method_is_answered_with_the_nearest(without_lab, capsys):
    with pytest.raises(SystemExit) as left:
        main(["methods", "topkk"])
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    assert err.startswith("tightgrad: no method has the id 'topkk'; topk")


@pytest.mark.parametrize("arguments", ["", "--help", "lab", "doctor x", "methods --json", "methods a b"])
def test_everything_else_says_what_installs_it(arguments):
    done = run(*arguments.split(), without=(*ALONE, "torch"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'tightgrad[lab]'" in done.stderr


def test_with_the_lab_it_does_the_rest_and_a_fault_of_the_lab_is_not_taken_for_its_absence():
    done = run("report", "--help", without=())
    assert done.returncode == 0, done.stderr
    assert "Usage: tightgrad report" in done.stdout
    broken = run("report", "--help", without=("tightgrad_lab.cli.extras",))
    assert broken.returncode == 1
    assert "No module named 'tightgrad_lab.cli.extras'" in broken.stderr


@pytest.mark.parametrize(
    ("arguments", "without", "unbuffered"),
    [
        ("--version", ALONE, ""),
        ("--version", ALONE, "1"),
        ("methods topk", (), "1"),
        pytest.param("methods topk", ALONE, "", marks=pytest.mark.slow),
        pytest.param("methods topk", ALONE, "1", marks=pytest.mark.slow),
        pytest.param("methods topk", (), "", marks=pytest.mark.slow),
    ],
)
def test_a_reader_that_has_seen_enough_is_no_error(arguments, without, unbuffered):
    code = PROGRAM.format(arguments=arguments.split(), without=without)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        process.stdout.close()  # before it has printed a line
        assert (process.stderr.read(), process.wait()) == (b"", 1)


def test_an_interrupt_after_the_work_is_done_ends_the_exit_at_once():
    program = (
        "import atexit, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background jobs ignore
        "atexit.register(lambda: (print('ends', flush=True), time.sleep(600)))\n"  # as slow as torch on busy cores
        "from tightgrad_command import main\n"
        "main(['--version'])\n"
    )
    done = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout.readline().startswith("tightgrad ")
    assert done.stdout.readline() == "ends\n"
    done.send_signal(signal.SIGINT)
    assert done.communicate() == ("", "")
    assert done.returncode == -signal.SIGINT
