"""What a process and those it started take, as the kernel counts it: processor time and resident memory."""

from __future__ import annotations

import re
import time
from pathlib import Path

_KIB = 1024
_CPU_OF_PROCESS = 2  # CPUCLOCK_SCHED, see clock_getcpuclockid(3)


def family(pid: int) -> list[int]:
    """The process and all below it that are alive."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and all below it, to the nanosecond."""
    return sum(time.clock_gettime(~member << 3 | _CPU_OF_PROCESS) for member in family(pid))


def resident_bytes(pid: int, arena: Path | None = None) -> int:
    """Resident memory of the process and all below it, everything counted once.

    Memory of their own and shared memory by their shares; of files, programs and libraries above all, as much as the
    largest of them has resident. An arena counts with all that its file holds, mapped at the moment or not.
    """
    found = {member: _resident(member) for member in family(pid)}
    shares = [fields for member, fields in found.items() if fields or member == pid]
    shared = sum(each["Pss_Shmem"] for each in shares)
    if arena is not None:
        shared = max(shared, arena.stat().st_blocks * 512)
    files = max(each["RssFile"] for each in shares)
    return sum(each["Pss_Anon"] for each in shares) + shared + files


def _resident(pid: int) -> dict[str, int]:
    """What a process has resident; nothing of one that has just ended."""
    try:
        return _fields(f"/proc/{pid}/smaps_rollup") | _fields(f"/proc/{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return {}


def _fields(path: str) -> dict[str, int]:
    """The fields of a file of /proc that are given in kB, in bytes."""
    return {name: int(kib) * _KIB for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", Path(path).read_text(), re.M)}
