"""How much memory the daemon takes unless it is told, and what it says where there is less."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tmemd.base.errors import ConfigError
from tmemd.config.settings import Config
from tmemd.process.arena_memory import MemoryLimits, check, choose, detect

if TYPE_CHECKING:
    from pathlib import Path

MIB, GIB = 1 << 20, 1 << 30
V1, V2 = "sys/fs/cgroup/memory", "sys/fs/cgroup"


def system(root: Path, cgroup: str, limits: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **limits}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "limits", "container"),
    [
        ("0::/", {f"{V2}/memory.max": "67108864"}, 64 * MIB),
        ("0::/", {f"{V2}/memory.max": "max"}, None),
        ("0::/a/b", {f"{V2}/a/b/memory.max": "max", f"{V2}/a/memory.max": "67108864"}, 64 * MIB),
        ("0::/a/b", {f"{V2}/a/b/memory.max": "33554432", f"{V2}/a/memory.max": "67108864"}, 32 * MIB),
        ("0::/../up", {f"{V2}/memory.max": "67108864"}, 64 * MIB),
        ("4:memory:/docker/x\n0::/", {f"{V1}/memory.limit_in_bytes": "67108864"}, 64 * MIB),
        ("4:memory:/x", {f"{V1}/x/memory.limit_in_bytes": "67108864"}, 64 * MIB),
        ("4:memory:/x", {f"{V1}/x/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("9:name=systemd:/\n5:cpu,memory:/x", {f"{V1}/x/memory.limit_in_bytes": "67108864"}, 64 * MIB),
        ("0::/", {f"{V2}/memory.max": "nonsense"}, None),
    ],
)
def test_the_limit_of_a_container(tmp_path: Path, cgroup: str, limits: dict[str, str], container: int | None) -> None:
    assert detect(None, system(tmp_path, cgroup, limits)).container == container


def test_without_cgroups_nothing_limits(tmp_path: Path) -> None:
    assert detect(None, tmp_path) == MemoryLimits(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None)


@pytest.mark.parametrize(
    ("limits", "memory", "why"),
    [
        (MemoryLimits(8 * GIB, None), 2 * GIB, "a quarter of the machine's 8192 MiB"),
        (MemoryLimits(8 * GIB, 512 * MIB), 256 * MIB, "half of the 512 MiB that its container may use"),
        (
            MemoryLimits(8 * GIB, GIB, "/dev/shm/a", 64 * MIB, 32 * MIB),
            30 * MIB,
            "free of the 64 MiB of the file system of",
        ),
        (MemoryLimits(8 * GIB, GIB, "/dev/shm/a", 9 * GIB, 8 * GIB), 512 * MIB, "half of the 1024 MiB"),
    ],
)
def test_the_least_of_what_there_is(limits: MemoryLimits, memory: int, why: str) -> None:
    chosen, said = choose(limits)
    assert (chosen, why in said) == (memory, True)


def test_no_room_at_all_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"there is no memory for the arena: .* is 0 bytes; make that larger"):
        choose(MemoryLimits(8 * GIB, None, "/dev/shm/a", 64 * MIB, 0))


def test_more_than_the_file_system_has_is_refused_and_more_than_is_free_is_told() -> None:
    config = Config(memory=128 * MIB, arena="/dev/shm/a")
    limits = MemoryLimits(8 * GIB, None, "/dev/shm/a", 64 * MIB, 32 * MIB)
    with pytest.raises(
        ConfigError, match=r"memory is 128 MiB, and the file system of /dev/shm/a has 64 MiB: .*--shm-size"
    ):
        list(check(limits, config))
    (told,) = check(limits, replace(config, memory=48 * MIB))
    assert "memory is 48 MiB" in told
    assert "has only 32 MiB free" in told
    assert list(check(limits, replace(config, memory=16 * MIB))) == []
    (told,) = check(MemoryLimits(8 * GIB, 64 * MIB), replace(config, arena=None))
    assert "the container may use 64 MiB" in told
    (told,) = check(MemoryLimits(64 * MIB, None), replace(config, arena=None))
    assert "the machine has 64 MiB" in told
