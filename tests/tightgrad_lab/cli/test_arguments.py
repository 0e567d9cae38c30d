"""What a person sees who types something wrong: one line that says what and what instead, and exit code 2."""

import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import typer.main

from tightgrad_lab.cli import app as cli
from tightgrad_lab.errors import RunError

WRONG = [
    (["labb"], "lab, report, methods"),
    (["lab", "imagee"], "choose from: image"),
    (["lab", "--rank", "3"], "--ranks"),
    (["lab", "--ranks", "0"], "tightgrad lab --help"),
    (["lab", "--ranks", "3"], "use one of 1, 2, 4"),
    (["lab", "--epochs", "many"], "tightgrad lab --help"),
    (["lab", "--seeds", "-1"], "tightgrad lab --help"),
    (["report", "extra"], "tightgrad report --help"),
    (["report", "--runs", "nowhere"], "run `tightgrad lab` first"),
    (["methods", "--jsn"], "--json"),
    (["lab", "--ranks", "0"], "--ranks 0 is too small: use 1 or more; see"),
    (["lab", "--epochs", "many"], "--epochs many is no whole number; see"),
    (["plan", "--ranks", "99"], "--ranks 99 is too large: use 64 or less; see"),
    (["plan", "--memory-gb", "x"], "--memory-gb x is no number; see"),
    (["exercises", "check", "abc"], "argument N abc is no whole number; see"),
    (["doctor", __file__], "not a TensorBoard event file with scalars, and not the steps.jsonl of a run"),
    (["bench", "headline", "--draw", "no.json"], "there is no file no.json; write one with"),
]


@pytest.mark.parametrize(("arguments", "instead"), WRONG, ids=lambda value: " ".join(value) if value else "")
def test_wrong_arguments_are_one_line_and_exit_2(arguments, instead, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("tightgrad: ")
    assert instead in err
    assert not list(tmp_path.iterdir())


def test_ranks_may_not_contradict_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert cli.run(["lab", "--ranks", "2"]) == 2
    assert "torchrun started 4" in capsys.readouterr().err


def test_a_failed_run_is_one_line_and_exits_1(monkeypatch, capsys, tmp_path):
    def fail(*args):
        raise RunError("image none seed 0 failed: OSError: disk full")

    monkeypatch.setattr("tightgrad_lab.experiments.factorial.run_jobs", fail)
    assert cli.run(["lab", "--runs", str(tmp_path), "--report", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "tightgrad: image none seed 0 failed: OSError: disk full"


def test_interruption_is_one_line(monkeypatch, capsys, tmp_path):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("tightgrad_lab.experiments.factorial.run_jobs", interrupt)
    assert cli.run(["lab", "--runs", str(tmp_path), "--report", str(tmp_path)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "tightgrad: stopped."


def test_version(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"tightgrad {version('tightgrad')}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_verb(arguments, capsys):
    assert cli.run(arguments) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("lab", "report", "methods", "Exit codes"))


@pytest.mark.parametrize("arguments", ["['--help']", "['report', '--runs', 'nowhere']"])
def test_light_verbs_do_not_import_torch(arguments):
    program = f"import sys; from tightgrad_lab.cli.app import run; run({arguments}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("group", ["bench", "data"])
def test_a_group_without_a_command_prints_its_help(group, capsys):
    assert cli.run([group]) == 2
    shown = capsys.readouterr()
    assert f"Usage: tightgrad {group}" in shown.out
    assert shown.err.startswith(f"tightgrad: tightgrad {group} needs one of its commands: ")


VERB = re.compile(
    r"(Assume|Audit|Begin|Build|Clip|Continue|Count|Cut|Draw|Encode|Explain|Fetch|Give|Grade|Keep|Let|Limit|Measure|Print|"
    r"Put|Read|Replace|Run|Spread|Start|Stop|Take|Time|Train|Try|Use|Write|Show|Also) "
)


def options(command, path="tightgrad"):
    """Every option and argument of a command and of those below it, with its help."""
    for parameter in command.params:
        if getattr(parameter, "help", None) and not parameter.name.endswith(("_completion", "help")):
            yield f"{path} {parameter.name}", parameter.help
    for name, child in getattr(command, "commands", {}).items():
        yield from options(child, f"{path} {name}")


def test_options_and_commands_are_explained_by_sentences():
    """Each says what to do or what it does: a verb first, a capital letter, a full stop."""
    said = dict(options(typer.main.get_command(cli.app)))
    assert len(said) > 60
    for name, text in said.items():
        assert VERB.match(text), f"{name}: {text}"
        assert len(text.split()) > 3, f"{name}: {text}"
        assert text.endswith("."), f"{name}: {text}"
