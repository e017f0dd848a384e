"""What is measured on."""

import os
import platform
from pathlib import Path


def describe() -> dict[str, str | int]:
    """The processor, its cores as this process may use them, the kernel and the memory."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "memory_mib": int((_field("/proc/meminfo", "MemTotal") or "0").split()[0]) >> 10,
    }


def in_words() -> str:
    """The same as one line."""
    this = describe()
    return "{cpu}, {cores} cores, {memory_mib:,} MiB of memory, Linux {kernel}".format(**this)


def _field(path: str, name: str) -> str | None:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None
