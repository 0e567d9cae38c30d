"""Network namespaces, one a rank, joined by a bridge in a namespace of its own. Nothing of the machine's network is
touched, and all of it is gone afterwards.

Both ends of every link are shaped by a token bucket (`tc tbf`): what a rank sends, and what the bridge sends to it. The
buckets are small, so that a short message does not pass at full speed out of a full bucket.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tightgrad_lab.errors import ArgumentError

PREFIX = "tightgrad"
INTERFACE = "eth0"
HINT = "run as root on Linux with iproute2 installed (Debian: apt-get install iproute2)"
SMALLEST_BURST_NBYTES = 1600
BURST_SECONDS = 0.0002
SMALLEST_QUEUE_NBYTES = 128 * 1024
QUEUE_SECONDS = 0.02


@dataclass(frozen=True)
class Network:
    """A network that is up.

    Args:
        namespaces: by rank.
        addresses: by rank.
        rate_bits_per_second: of every link in both directions; None is not limited.
    """

    namespaces: tuple[str, ...]
    addresses: tuple[str, ...]
    rate_bits_per_second: int | None

    @property
    def ranks(self) -> int:
        """How many."""
        return len(self.namespaces)


def why_not() -> str | None:
    """What this machine lacks, with what to do; None if nothing."""
    lacking = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if lacking:
        return f"network namespaces need the command{'s' * (len(lacking) > 1)} {' and '.join(lacking)}; {HINT}"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return f"network namespaces need root; {HINT}"
    return _refused()


def _refused() -> str | None:
    """What the kernel says to one shaped link."""
    try:
        with network(1, 10_000_000):
            return None
    except ArgumentError as error:
        return str(error)


@contextmanager
def network(ranks: int, rate_bits_per_second: int | None) -> Iterator[Network]:
    """Build a network of `ranks` namespaces; remove it at the end, also after an error or Ctrl-C.

    Args:
        ranks: at least 1.
        rate_bits_per_second: of every link; None leaves them as fast as the machine copies.

    Raises:
        ArgumentError: the machine does not allow it.
    """
    remove_stale()
    own = [f"{PREFIX}-{os.getpid()}-{rank}" for rank in range(ranks)]
    switch = f"{PREFIX}-{os.getpid()}-switch"
    addresses = tuple(f"10.77.0.{rank + 1}" for rank in range(ranks))
    try:
        for name in (*own, switch):
            _ip("netns", "add", name)
        _ip("-n", switch, "link", "add", "bridge", "up", "type", "bridge")
        for rank, (name, address) in enumerate(zip(own, addresses, strict=True)):
            port = f"port{rank}"
            _ip("link", "add", INTERFACE, "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", name, "link", "set", interface, "up")
            if rate_bits_per_second is not None:
                _shape(name, INTERFACE, rate_bits_per_second)
                _shape(switch, port, rate_bits_per_second)
        yield Network(tuple(own), addresses, rate_bits_per_second)
    finally:
        for name in (*own, switch):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def remove_stale() -> None:
    """Remove what a killed process has left: namespaces of ours whose process is gone."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        name = line.split()[0] if line.strip() else ""
        prefix, _, rest = name.partition("-")
        pid = rest.partition("-")[0]
        if prefix == PREFIX and pid.isdigit() and not _is_alive(int(pid)):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def bucket(rate_bits_per_second: int) -> tuple[int, int]:
    """Bytes of the token bucket and of the queue before it, for a rate."""
    nbytes_per_second = rate_bits_per_second / 8
    burst = max(SMALLEST_BURST_NBYTES, round(nbytes_per_second * BURST_SECONDS))
    return burst, max(SMALLEST_QUEUE_NBYTES, round(nbytes_per_second * QUEUE_SECONDS))


def _shape(namespace: str, interface: str, rate_bits_per_second: int) -> None:
    burst, queue = bucket(rate_bits_per_second)
    settings = ["rate", f"{rate_bits_per_second}bit", "burst", str(burst), "limit", str(queue)]
    _command("tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf", *settings)


def _ip(*arguments: str) -> None:
    _command("ip", *arguments)


def _command(*words: str) -> None:
    """Raise `ArgumentError` with what the command said."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ArgumentError(f"{words[0]} cannot be run: {error.strerror}; {HINT}") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ArgumentError(f"this machine refuses `{' '.join(words)}`: {said}; {HINT}")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
