"""The conformance suite as another package runs it: what is right passes, and each fault fails where one looks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

PACKAGE = Path(__file__).parents[2] / "support" / "own_methods"
HALF = {"half": "Half", "later": "Later", "at_most": "AtMost", "everyone": "Everyone"}
BROKEN = ("Uncut", "Shared", "Repeated", "Trusting", "Boasting", "Loose", "Averaging", "Forgetful", "Roleless")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package beside its dist-info folder, as it is installed."""
    folder = tmp_path_factory.mktemp("package")
    for source, name in (("half", "half"), ("conformance", "test_half"), ("broken", "broken")):
        shutil.copy(PACKAGE / f"{source}.py", folder / f"{name}.py")
    shutil.copy(PACKAGE / "broken_conformance.py", folder / "test_broken.py")
    (folder / "conftest.py").write_text('pytest_plugins = ["tightgrad.testing"]\n')
    info = folder / "half-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half\nVersion: 1.0\n")
    points = [f"{name} = half:{cls}" for name, cls in HALF.items()]
    points += [f"{name.lower()} = broken:{name}" for name in BROKEN]
    (info / "entry_points.txt").write_text("\n".join(["[tightgrad.methods]", *points, ""]))
    return folder


def run_pytest(package: Path, *arguments: str) -> tuple[int, str]:
    path = os.pathsep.join([str(package), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", "-rf", "--tb=short", *arguments],
        cwd=package,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_package_passes_and_its_payload_is_frozen(package: Path) -> None:
    golden = package / "golden" / "half" / "v1" / "Half.safetensors"
    code, output = run_pytest(package, "test_half.py", "--tightgrad-write-golden")
    assert code == 0, output
    assert golden.exists()
    written = golden.read_bytes()
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None
    assert int(passed[1]) > 200
    code, output = run_pytest(package, "test_half.py", "-k", "golden")
    assert code == 0, output
    assert "2 passed" in output
    assert golden.read_bytes() == written
    tensors = load_file(golden)
    save_file(tensors | {"decoded": -tensors["decoded"]}, golden, {"config": '{"id": "half"}', "num_tensors": "1"})
    (golden.parent / "Quarter.safetensors").write_bytes(written)
    code, output = run_pytest(package, "test_half.py", "-k", "golden")
    assert code == 1
    assert "Half.safetensors is decoded to other values than when it was written" in output
    assert "files without a codec of these settings" in output


# The method, a check that must fail, and what its message says.
FAULTS = (
    ("Uncut", "test_codec[chunks_at_multiples_of_the_granularity", "is granularity=1 right"),
    ("Shared", "test_codec[input_is_left_alone", "the payload shares memory with the input"),
    ("Repeated", "test_codec[a_zero_among_others_stays_zero", "an element that was 0 among others is decoded"),
    ("Trusting", "test_codec[wrong_layout_is_a_payload_error", ""),
    ("Boasting", "test_claims[contraction", "claims 0.9, and of ||x||^2 ="),
    ("Unregistered", "test_codec[config_and_repr_round_trip", "no method has the id 'unregistered'"),
    ("Loose", "test_clipper[the_applied_norm_is_at_most_the_bound", "above the bound 1"),
    ("Averaging", "test_reducer[ranks_agree_and_transmitted_adds_up", "does not add up to its total"),
    ("Forgetful", "test_feedback[conservation", "was neither delivered nor kept after 12 steps"),
    ("Roleless", "test_feedback[conservation", 'has role="residual", so flush() would deliver nothing'),
)


@pytest.mark.slow
def test_each_fault_fails_where_one_looks_for_it(package: Path) -> None:
    code, output = run_pytest(package, "test_broken.py")
    assert code == 1, output
    failed = [line for line in output.splitlines() if line.startswith("FAILED ")]
    for name, check, _ in FAULTS:
        assert any(f"::{check}" in line and f"{name}(" in line for line in failed), f"{name}: {failed}"
    for _, _, message in FAULTS:
        assert message in output


def test_the_library_imports_neither_pytest_nor_hypothesis() -> None:
    code = (
        "import sys, pkgutil, importlib, tightgrad\n"
        "assert not {'pytest', 'hypothesis', 'tightgrad.testing'} & set(sys.modules)\n"
        "import tightgrad_lab.cli\n"
        "assert not {'pytest', 'hypothesis', 'tightgrad.testing'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
