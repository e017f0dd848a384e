"""Chooses and checks the arena's memory: on the machine, in the container, on the arena's file system.

By default `memory` is the least of a quarter of the machine's, half of the container's limit, and the free space of the
arena's file system; an existing arena keeps its own. A value that can never be had is refused; one that exceeds what is
free at the moment is warned about.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tmemd.base.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tmemd.config.settings import Config

_MIB = 1 << 20
_FREE_PART = 15 / 16
"""Share of a file system's free space that the arena takes."""
_APPARENT = 60
"""The size of the arena's mapping as a multiple of `memory`, used or not."""
_CAP_IPC_LOCK = 1 << 14


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Available memory in bytes; None if nothing limits it."""

    machine: int
    container: int | None
    arena: str | None = None
    capacity: int | None = None
    """Size of the arena's file system."""
    free: int | None = None
    """Free there, including what the arena already uses."""


def detect(arena: str | None, root: Path = Path("/")) -> MemoryLimits:
    """Find the limits. `root` holds /proc and /sys."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [limit for limit in _limits(root) if limit < machine]
    container = min(limits, default=None)
    if arena is None:
        return MemoryLimits(machine, container)
    path = Path(arena)
    try:
        its = os.statvfs(path if path.exists() else path.absolute().parent)
        own = path.stat().st_blocks * 512 if path.exists() else 0
    except OSError:
        return MemoryLimits(machine, container)  # whoever opens the arena will say why
    if not its.f_blocks:
        return MemoryLimits(machine, container)
    return MemoryLimits(machine, container, arena, its.f_blocks * its.f_frsize, its.f_bavail * its.f_frsize + own)


def choose(limits: MemoryLimits) -> tuple[int, str]:
    """The memory to use by default, and why.

    Raises:
        ConfigError: There is none.
    """
    parts = [(limits.machine // 4, f"a quarter of the machine's {in_mib(limits.machine)}")]
    if limits.container is not None:
        parts.append((limits.container // 2, f"half of the {in_mib(limits.container)} that its container may use"))
    if limits.free is not None:
        free = (
            f"what is free of the {in_mib(limits.capacity or 0)} of the file system of {limits.arena}, less a sixteenth"
        )
        parts.append((int(limits.free * _FREE_PART), free))
    memory, why = min(parts)
    if memory < _MIB:
        raise ConfigError(f"there is no memory for the arena: {why} is {memory} bytes; {_way_out(limits)}")
    return memory // _MIB * _MIB, why


def check(limits: MemoryLimits, config: Config) -> Iterator[str]:
    """Warn of every limit that `memory` exceeds.

    Raises:
        ConfigError: The arena's file system can never hold so much.
    """
    memory = config.memory
    if limits.capacity is not None and memory > limits.capacity:
        raise ConfigError(
            f"memory is {in_mib(memory)}, and the file system of {limits.arena} has {in_mib(limits.capacity)}: "
            f"{_way_out(limits)}, or set memory to less"
        )
    if limits.free is not None and memory > limits.free:
        yield (
            f"memory is {in_mib(memory)}, and the file system of {limits.arena} has only {in_mib(limits.free)} free: "
            f"beyond that, pages are refused (no_space)"
        )
    if limits.container is not None and memory > limits.container:
        yield (
            f"memory is {in_mib(memory)}, and the container may use {in_mib(limits.container)}: beyond it the system "
            f"ends a process; set memory to less, or the limit to {in_mib(memory)} and 300 MiB for each worker"
        )
    elif memory > limits.machine:
        yield f"memory is {in_mib(memory)}, and the machine has {in_mib(limits.machine)}"
    yield from _of_ulimits(config)


def in_mib(size: int) -> str:
    return f"{size >> 20} MiB" if size >= _MIB else f"{size} bytes"


def _way_out(limits: MemoryLimits) -> str:
    if limits.arena is None:
        return "set memory"
    return (
        "make that larger (mount -o remount,size=; for a container --shm-size, or shm_size in Compose; podman-compose "
        "ignores ipc:, so that the container has a /dev/shm of its own), give another arena"
    )


def _of_ulimits(config: Config) -> Iterator[str]:
    needed = _APPARENT * config.memory
    for kind, flag in ((resource.RLIMIT_AS, "-v"), (resource.RLIMIT_FSIZE, "-f")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY and limit < needed and (flag == "-v" or config.arena is not None):
            yield f"ulimit {flag} is {in_mib(limit)}; the arena's addresses are some {in_mib(needed)}, used or not"
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if config.mlock and limit != resource.RLIM_INFINITY and limit < needed and not _may_lock():
        yield (
            f"mlock: the limit of locked memory is {in_mib(limit)}, and the arena is charged with some {in_mib(needed)}"
            ": make it unlimited (LimitMEMLOCK=infinity, ulimit -l)"
        )


def _may_lock() -> bool:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return bool(int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16) & _CAP_IPC_LOCK)
    return False


def _limits(root: Path) -> Iterator[int]:
    """Memory limits of this process's cgroup and those above it, in both versions."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                yield from _upwards(root / mount, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _upwards(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")


def _upwards(mount: Path, path: str, name: str) -> Iterator[int]:
    """The limits of a cgroup and those above it, as far as the container sees them."""
    at = Path(path.lstrip("/"))
    for folder in (at, *at.parents):
        with suppress(OSError, ValueError):  # not there, or `max`
            yield int((mount / folder / name).read_text())
