"""What produced a number: versions, machine, device, time. Imports neither torch nor tightgrad."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil  # type: ignore[import-untyped]

CPU_INFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def environment(device: str | None = None, backend: str | None = None) -> dict[str, object]:
    """Describe this process.

    Args:
        device: what computes, such as "cpu"; None if nothing was computed.
        backend: of torch.distributed, such as "gloo"; None without a process group.
    """
    return {
        "python": platform.python_version(),
        "torch": version("torch"),
        "tightgrad": _own_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": usable_cores(),
        "device": device,
        "backend": backend,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "memory_bytes": psutil.virtual_memory().total,
        "last_cache_bytes": _last_cache_nbytes(),
    }


def _own_version() -> str:
    try:
        return version("tightgrad")
    except PackageNotFoundError:  # run from its folder
        return "not installed"


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _processor() -> str:
    lines = CPU_INFO.read_text(encoding="utf-8").splitlines() if CPU_INFO.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _last_cache_nbytes() -> int | None:
    """The CPU's largest cache: processors of one name differ in it. None where the system does not say."""
    sizes = [path.read_text(encoding="ascii").strip() for path in CACHES.glob("index*/size")]
    return max((int(size[:-1]) * UNITS[size[-1]] for size in sizes if size[-1:] in UNITS), default=None)
