"""Damaged payloads and state files: a typed error, or something of the right shape; no crash, no hang, no flood.

The slow test is the acceptance test of 100,000; its seed differs from that of the fast one.
"""

import pytest

from faults import guarded
from support.waiting import patience

FAST = {"faults.payloads": 2_500, "faults.states": 500}
FULL = {"faults.payloads": 60_000, "faults.states": 40_000}
MODULES = sorted(FAST)


def assert_survived(module: str, count: int, seed: int, seconds: float) -> None:
    report = guarded.run(module, count, seed, seconds)
    assert not report["failures"], "\n".join(report["failures"])
    outcomes = report["outcomes"]
    print(module, outcomes, f"memory grew by {report['grown_nbytes'] / 2**20:.0f} MiB")
    assert sum(outcomes.values()) == count
    assert sum(number for name, number in outcomes.items() if "Error" in name) > count / 10, "nothing was damaged"
    assert sum(number for name, number in outcomes.items() if "Error" not in name) > 0, "nothing was let through"
    assert report["grown_nbytes"] < guarded.MORE_NBYTES / 4


@pytest.mark.parametrize("module", MODULES)
def test_some_damaged_inputs(module: str) -> None:
    assert_survived(module, FAST[module], seed=0, seconds=120)


@pytest.mark.slow
@pytest.mark.timeout(patience(1_800))
@pytest.mark.parametrize("module", MODULES)
def test_100_000_damaged_inputs(module: str) -> None:
    assert sum(FULL.values()) == 100_000
    assert_survived(module, FULL[module], seed=1, seconds=1_700)
