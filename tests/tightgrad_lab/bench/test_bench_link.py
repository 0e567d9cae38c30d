"""`tightgrad bench link`: real steps over a shaped link, rows as designed, our counter against the interface's."""

import json
from typing import Any

import pytest

from support.net_ranks import forked
from tightgrad_lab.bench import link
from tightgrad_lab.bench.link_work import Work
from tightgrad_lab.cli import app as cli
from tightgrad_lab.cli.bench.link import parse_rate
from tightgrad_lab.common.recommended import LOCAL, RECOMMENDED
from tightgrad_lab.errors import ArgumentError
from tightgrad_lab.network import why_not

REASON = why_not()
needs_network = pytest.mark.skipif(REASON is not None, reason=str(REASON))
KEYS = {
    "rate_bits_per_second", "ranks", "plan", "step_seconds", "ratio_to_no_communication", "wire_bytes",
    "interface_bytes", "error",
}  # fmt: skip
RATE = 20_000_000
WORK = Work(width=96, layers=2, batch_size=2)
COUNTED_WITHIN = 0.05
CONTROL_NBYTES = 2_000
"""gloo's own words around a peer's messages, which our counter does not see."""


def is_counted_well(row: dict[str, Any]) -> bool:
    counted = row["wire_bytes"] + row["framing_bytes"]
    return abs(row["interface_payload_bytes"] - counted) <= COUNTED_WITHIN * counted


@needs_network
def test_rows_over_a_slow_link() -> None:
    plans = {name: RECOMMENDED[name] for name in ("topk 1 %", "8-bit blocks")}
    peers = ("no communication", "dense")
    with forked():
        found = link.run(RATE, 2, timing=link.Timing(steps=2), work=WORK, plans=plans, peers=peers)
    rows = {row["plan"]: row for row in found["rows"]}
    assert list(rows) == [*peers, *plans]
    assert all(row.keys() >= KEYS and row["error"] is None for row in rows.values())
    gradient = 4 * WORK.num_parameters
    assert rows["dense"]["wire_bytes"] == gradient, "an all-reduce over two ranks sends the gradient once"
    assert rows["dense"]["step_seconds"] > 0.9 * 8 * gradient / RATE
    assert rows["topk 1 %"]["wire_bytes"] < 0.1 * rows["dense"]["wire_bytes"]
    for name in plans:
        assert is_counted_well(rows[name]), rows[name]
    difference = rows["dense"]["interface_payload_bytes"] - gradient
    assert abs(difference) <= COUNTED_WITHIN * gradient + CONTROL_NBYTES
    assert json.loads(json.dumps(found)) == found


@needs_network
@pytest.mark.slow
def test_local_updates_are_a_row_of_their_mean_step() -> None:
    (name, local), *_ = LOCAL.items()
    found = link.run(RATE, 2, timing=link.Timing(steps=1, predicted_from=0), work=WORK, plans={}, peers=(name,))
    rows = {row["plan"]: row for row in found["rows"]}
    row = rows[name]
    gradient = 4 * WORK.num_parameters
    assert row["error"] is None
    assert 0 < row["wire_bytes"] < gradient / local.every / 4
    assert is_counted_well(row), row


@needs_network
@pytest.mark.slow
def test_torchs_powersgd_is_a_row_whatever_it_does() -> None:
    found = link.run(
        None, 2, timing=link.Timing(steps=2, seconds=5), work=Work(batch_size=1), plans={}, peers=("torch PowerSGD",)
    )
    (row,) = (row for row in found["rows"] if row["plan"] == "torch PowerSGD")
    assert (row["error"] is None) == (row["step_seconds"] is not None)


@pytest.mark.parametrize(
    ("text", "bits"), [("10mbit", 10**7), ("1gbit", 10**9), ("2.5Mbit", 2_500_000), ("unlimited", None)]
)
def test_rates_as_people_write_them(text: str, bits: int | None) -> None:
    assert parse_rate(text) == bits


@pytest.mark.parametrize("text", ["fast", "10", "0mbit", "-1mbit", "10mb"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="is no rate"):
        parse_rate(text)


def test_without_root_it_is_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert cli.run(["bench", "link"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tightgrad: network namespaces need root")
    assert err.count("\n") == 1


def measured(plan: str, step: float, predicted: float | None) -> dict[str, Any]:
    return {"plan": plan, "step_seconds": step, "predicted_step_seconds": predicted}


def test_advice_is_held_to_what_was_measured() -> None:
    rows = [
        measured("no communication", 1.0, 1.0),
        measured("topk 1 %", 1.6, 1.5),
        measured("8-bit blocks", 1.5, 1.52),
        measured("dense", 9.0, 10.0),
        measured("torch PowerSGD", 1.1, None),
    ]
    found = link.advice(rows)
    assert found is not None
    assert (found["recommended"], found["fastest_measured"]) == ("topk 1 %", "8-bit blocks")
    assert found["recommended_over_fastest"] == pytest.approx(1.6 / 1.5)
    assert found["largest_prediction_error"] == pytest.approx(1 / 9)
    assert link.advice([measured("dense", 9.0, None)]) is None
