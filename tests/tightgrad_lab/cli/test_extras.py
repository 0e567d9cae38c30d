"""Installed without extras, the command says which one is missing, and exits with 2."""

import os
import subprocess
import sys

import pytest

from tightgrad_lab.cli.extras import extra_with, how_to_install

VERBS = [
    "",
    "--help",
    "methods",
    "lab",
    "report",
    "audit x.py",
    "doctor x",
    "plan",
    "bench clip",
    "data list",
]
PROGRAM = """
import sys
for name in {missing!r}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
from tightgrad_command import main
main({arguments!r})
"""


def run(missing, arguments, where):
    code = PROGRAM.format(missing=missing, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=where, env={**os.environ})


@pytest.mark.parametrize("verb", VERBS)
def test_without_the_command_lines_own_packages(verb, tmp_path):
    done = run(["typer", "rich", "click"], verb.split(), tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("tightgrad: typer is not installed")
    assert "pip install 'tightgrad[lab]'" in done.stderr


def test_the_version_needs_none_of_them(tmp_path):
    done = run(["typer", "rich", "click"], ["--version"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tightgrad 0.")


@pytest.mark.parametrize(
    ("missing", "arguments"), [("rich", ["methods"]), ("platformdirs", ["data", "list"]), ("rich", ["data", "list"])]
)
def test_with_some_of_them(missing, arguments, tmp_path):
    done = run([missing], arguments, tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"tightgrad: {missing} is not installed" in done.stderr
    assert "tightgrad[lab]" in done.stderr


def test_what_another_package_misses_is_named_and_what_this_one_misses_is_a_bug():
    assert (
        how_to_install("nowhere.inside") == "nowhere is not installed, and this command needs it: pip install nowhere"
    )
    assert how_to_install("tightgrad_lab.nowhere") is None
    assert how_to_install(None) is None


def test_the_smallest_extra_of_the_metadata_is_named():
    requirements = [
        "torch>=2.9",
        "accelerate>=1.15; extra == 'dev'",
        "pypi-simple>=1.8; extra == 'dev'",
        "typer>=0.15; extra == 'dev'",
        "typer>=0.15; extra == 'lab'",
        'pypi-simple>=1.8 ; extra == "data"',
        "tensorflow-cpu>=2.18; extra == 'peers'",
        "accelerate>=1.15; extra == 'peers'",
        "optax>=0.2; extra == 'peers'",
        "tensorboardX>=2.6; extra == 'field'",
        "accelerate>=1.15; extra == 'field'",
    ]
    extras = {
        "typer": "lab",
        "pypi_simple": "data",
        "tensorflow": "peers",
        "tensorboardX": "field",
        "accelerate": "field",
        "torch": None,
    }
    assert {module: extra_with(module, requirements) for module in extras} == extras
