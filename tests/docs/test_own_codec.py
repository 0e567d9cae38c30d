"""The package of docs/own-codec.md, installed as its page says: it passes the conformance suite and runs in a plan."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import patience

PAGE = Path(__file__).parents[2] / "docs" / "own-codec.md"
FILE = re.compile(r'^```\w+ title="(half-codecs/[^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def run(folder: Path, installed: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(150),
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.slow
def test_the_package_of_the_page(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="70")
    files = FILE.findall(PAGE.read_text(encoding="utf-8"))
    for name, text in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert len(files) == 4
    folder, installed = tmp_path / "half-codecs", tmp_path / "installed"
    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    run(tmp_path, installed, "-m", "pip", "install", *offline, "--target", str(installed), str(folder))
    pytest_of_package = ("-m", "pytest", "-W", "error", "-p", "no:cacheprovider")
    first = run(folder, installed, *pytest_of_package, "-p", "tightgrad.testing", "--tightgrad-write-golden")
    passed = re.search(r"(\d+) passed", first)
    assert passed is not None
    assert int(passed[1]) > 90, first
    assert (folder / "tests/golden/half/v1/Half.safetensors").exists()
    run(folder, installed, *pytest_of_package, "-k", "golden")
    assert run(folder, installed, "use.py") == "[0.248, 0.0, 0.248, 0.0, 0.248, 0.0, 0.248, 0.0]\n"
    without_pytest = (
        "import sys; import half_codecs; from tightgrad.testing import check_codec; check_codec(half_codecs.Half()); "
        "assert 'pytest' not in sys.modules; print('passed')"
    )
    assert run(folder, installed, "-c", without_pytest) == "passed\n"
