"""Namespaces, shaped links, and ranks inside: what they promise, and that nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from support.net_ranks import forked
from support.waiting import patience
from tightgrad_lab.errors import ArgumentError, RunError
from tightgrad_lab.network import NetRank, namespaces, network, run_in_network, why_not
from tightgrad_lab.network.counters import sent

REASON = why_not()
needs_network = pytest.mark.skipif(REASON is not None, reason=str(REASON))
NBYTES = 250_000
RATE = 10_000_000


def namespaces_now() -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.startswith(f"{namespaces.PREFIX}-")]


def timed_broadcast(rank: NetRank, send: Any) -> None:
    tensor = torch.full((NBYTES,), rank.rank, dtype=torch.uint8)
    dist.broadcast(tensor[:1].clone(), 0)
    dist.barrier()
    before, start = sent(), time.perf_counter()
    dist.broadcast(tensor, 0)
    dist.barrier()
    seconds, counted = time.perf_counter() - start, sent().since(before)
    send({"rank": rank.rank, "seconds": seconds, "good": int(tensor.sum()) == 0, "payload": counted.payload_nbytes})


def fails_on_one(rank: NetRank, send: Any) -> None:
    if rank.rank == 1:
        raise ValueError("planted")
    dist.barrier()


def fails_one_after_the_other(rank: NetRank, send: Any) -> None:
    time.sleep(0.5 * rank.rank)
    raise ValueError(f"planted on rank {rank.rank}")


def never_ends(rank: NetRank, send: Any) -> None:
    send({"pid": os.getpid()})
    time.sleep(6_000)


@needs_network
def test_a_link_has_its_rate_and_its_counters_see_what_is_sent() -> None:
    found: list[Any] = []
    with network(2, RATE) as net:
        assert len([name for name in namespaces_now() if f"-{os.getpid()}-" in name]) == 3
        run_in_network(net, timed_broadcast, (), found.append, timeout_seconds=patience(120))
        with forked(), pytest.raises(RunError, match=r"rank 1 ended .*ValueError: planted"):
            run_in_network(net, fails_on_one, (), found.append, timeout_seconds=patience(120))
        everyone = r"rank 0 ended .*: planted on rank 0; rank 1 ended .*: planted on rank 1"
        with forked(), pytest.raises(RunError, match=everyone):
            run_in_network(net, fails_one_after_the_other, (), found.append, timeout_seconds=patience(120))
    by_rank = {message["rank"]: message for message in found}
    assert all(message["good"] for message in found)
    expected = 8 * NBYTES / RATE
    assert by_rank[0]["seconds"] > 0.9 * expected, "the link lets no more through; a busy machine only adds to it"
    assert NBYTES <= by_rank[0]["payload"] < 1.05 * NBYTES
    assert by_rank[1]["payload"] < 0.05 * NBYTES
    assert not [name for name in namespaces_now() if f"-{os.getpid()}-" in name]


@needs_network
@pytest.mark.slow
def test_ranks_that_take_too_long_are_killed() -> None:
    pids: list[Any] = []
    with network(1, None) as net, pytest.raises(RunError, match="did not finish within"):
        run_in_network(net, never_ends, (), pids.append, timeout_seconds=15)
    for message in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(message["pid"], 0)


@needs_network
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_after_an_end_from_outside(number: signal.Signals) -> None:
    program = (
        "import signal, time\nfrom tightgrad_lab.network import network\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "with network(2, 10_000_000):\n    print('up', flush=True)\n"
        # a signal just before a sleep, or to another thread, is looked at only when that sleep is over
        "    for _ in range(6_000):\n        time.sleep(0.1)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(timeout=patience(60)) != 0, "ended before its time"
    if number == signal.SIGKILL:
        namespaces.remove_stale()  # as the next network does
    assert not [name for name in namespaces_now() if f"-{process.pid}-" in name]


def test_without_iproute2_a_person_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "commands ip and tc; run as root" in str(why_not())


def test_without_root_a_person_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "need root" in str(why_not())


@needs_network
def test_what_the_kernel_refuses_is_one_line() -> None:
    with pytest.raises(ArgumentError, match=r"this machine refuses `ip netns add .*`: .*"):
        namespaces._ip("netns", "add", "a/b")


@pytest.mark.parametrize("rate", [10**7, 10**8, 10**9])
def test_the_bucket_is_small_against_a_message(rate: int) -> None:
    burst, queue = namespaces.bucket(rate)
    assert burst * 8 / rate < 0.0015, "what may leave at once takes next to no time at this rate"
    assert queue > burst
