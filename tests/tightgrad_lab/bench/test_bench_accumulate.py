"""`tightgrad bench accumulate`: loops that reach the same weights, ours with the memory and bytes of the manual one."""

from dataclasses import replace

import pytest

from tightgrad_lab.bench import accumulate
from tightgrad_lab.bench.loops import LOOPS, Work

KEYS = {"name", "time_ratio_to_loop", "peak_memory_ratio_to_loop", "wire_bytes"}  # others may be added
WORK = Work(samples=1, length=4, width=64, layers=1, vocabulary=50)
SCALARS_NBYTES = 16  # the norm, which is there while so small a model's optimizer step is the fullest moment
CONTROL_NBYTES = {"tightgrad": 64, "tightgrad, fetch=batch": 96}  # one count of a window, or two
BY_BATCH = "tightgrad, fetch=batch"


def measured(wrapper, repeats=1, work=WORK, saved_nbytes=0, vote_nbytes=0):
    result = accumulate.run([wrapper], rounds=2, repeats=repeats, work=work)
    rows = {row["name"].removeprefix(f"{wrapper}: "): row for row in result["rows"]}
    assert all(row.keys() >= KEYS for row in rows.values())
    assert {"loop", "loop, again", "tightgrad", BY_BATCH} <= rows.keys()
    assert all(len(row["time_ratios"]) == repeats for row in rows.values())
    by_hand = [rows[name]["time_ratio_to_both_loops"] for name in ("loop", "loop, again")]
    assert repeats > 1 or sum(by_hand) == pytest.approx(2.0, abs=1e-9), "with two rounds a median is a mean"
    loop = rows["loop"]
    assert loop["time_ratio_to_loop"] == loop["peak_memory_ratio_to_loop"] == 1.0
    assert all(row["weights_difference"] == 0.0 for row in rows.values()), "loops that train alike are compared"
    fetched_ahead_nbytes = 8 * work.samples * (work.length + 1) * (work.micro_batches - 1)
    most = loop["peak_memory_bytes"] + SCALARS_NBYTES
    assert rows["tightgrad"]["peak_memory_bytes"] <= most + fetched_ahead_nbytes
    assert rows[BY_BATCH]["peak_memory_bytes"] <= most
    for name, control_nbytes in CONTROL_NBYTES.items():
        assert 0 <= rows[name]["wire_bytes"] - (loop["wire_bytes"] - saved_nbytes) <= control_nbytes + vote_nbytes
    return result, rows


@pytest.mark.slow
def test_one_device():
    result, rows = measured("plain")
    assert rows.keys() | set(result["missing"]) == {
        "loop",
        "loop, again",
        "tightgrad",
        BY_BATCH,
        "accelerate",
        "lightning",
    }
    assert rows["loop"]["wire_bytes"] == 0


def measure_without_peers(*args):
    """On each rank: to import a peer takes seconds. gloo frees a buffer late now and then: the lowest of six counts."""
    accumulate.LOOPS = tuple(loop for loop in LOOPS if loop.needs is None)
    accumulate.MEMORY_TRIES, accumulate.MEMORY_STEPS = 6, 2
    accumulate._measure(*args)


def check_ddp(**asked):
    _, rows = measured("ddp", **asked)
    gradient = 4 * sum(parameter.numel() for parameter in WORK.bare_model().parameters())
    assert rows["loop"]["wire_bytes"] == gradient, "an all-reduce over two ranks sends the gradient once"


def test_ddp_without_peers(monkeypatch):
    monkeypatch.setattr(accumulate, "_measure", measure_without_peers)
    check_ddp(work=replace(WORK, micro_batches=2))


@pytest.mark.slow
def test_ddp():
    check_ddp(repeats=2)  # gloo frees a buffer late now and then: the lower peak of two counts


@pytest.mark.slow
def test_fsdp2():
    work = replace(WORK, layers=3)
    model = work.bare_model()
    root = [parameter for name, parameter in model.named_parameters() if not name.startswith("blocks.")]
    nbytes_of_a_gather = 4 * sum(parameter.numel() for parameter in root) // 2
    # FSDP2's ranks say of each parameter whether they used it, in one byte, and add up their losses, one float64.
    vote = 1 + len(list(model.parameters())) + 8
    saved = (work.micro_batches - 1) * nbytes_of_a_gather
    _, last = measured("fsdp2 last", work=work, saved_nbytes=saved, vote_nbytes=vote)
    _, every = measured("fsdp2 every", work=work, vote_nbytes=vote)
    assert every["tightgrad"]["wire_bytes"] > last["tightgrad"]["wire_bytes"]
    assert every["tightgrad"]["peak_memory_bytes"] < last["tightgrad"]["peak_memory_bytes"]
