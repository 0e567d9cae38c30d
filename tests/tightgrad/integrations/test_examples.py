"""The examples run as they stand, and what they train has learned something."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import patience

EXAMPLES = Path(__file__).parents[3] / "examples" / "integrations"
CHANCE = {"accelerate_images": 1 / 10, "lightning_images": 1 / 10, "trainer_glosses": 1 / 12}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == CHANCE.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANCE)
def test_example(name):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(170), check=False)
    assert done.returncode == 0, done.stderr
    accuracy, steps = re.search(r"accuracy ([\d.]+) after (\d+) steps", done.stdout).groups()
    assert float(accuracy) > 3 * CHANCE[name]
    assert int(steps) > 20
