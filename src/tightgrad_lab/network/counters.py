"""What this namespace's interface has sent, as the kernel counts it."""

from dataclasses import dataclass
from pathlib import Path

from tightgrad_lab.network.namespaces import INTERFACE

HEADER_NBYTES = 14 + 20 + 32
"""Ethernet, IPv4, and TCP with timestamps, of each packet that the interface counts."""


@dataclass(frozen=True)
class Sent:
    """Counted from some time on.

    Args:
        nbytes: with headers.
        packets: those that carry nothing but an acknowledgement included.
    """

    nbytes: int
    packets: int

    @property
    def payload_nbytes(self) -> int:
        """Without headers: what programs gave to TCP, and what was sent again. An acknowledgement is all header."""
        return self.nbytes - HEADER_NBYTES * self.packets

    def since(self, before: "Sent") -> "Sent":
        """The difference."""
        return Sent(self.nbytes - before.nbytes, self.packets - before.packets)


def sent(interface: str = INTERFACE) -> Sent:
    """Read the counters."""
    folder = Path("/sys/class/net") / interface / "statistics"
    nbytes, packets = (int((folder / name).read_text(encoding="ascii")) for name in ("tx_bytes", "tx_packets"))
    return Sent(nbytes, packets)
