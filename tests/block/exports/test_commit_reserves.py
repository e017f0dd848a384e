"""Reserves whose memory is committed ahead, as an operator sees it: the system says what the arena's file takes."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import tmem
import tmem_engine
from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd
from tests.block.lib.stream import EndedError
from tests.integration.engine.test_native import SETTINGS
from tests.lib.daemon import Daemon, daemon
from tests.lib.retry import eventually
from tests.lib.support import PATIENCE
from tmem._model import errors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Tmpfs

MIB = 1 << 20
RESERVE = 16 * MIB


def taken(arena: Path) -> int:
    return arena.stat().st_blocks * 512


def flags(arena: Path) -> tuple[str, ...]:
    return (f"--nbd=unix:{arena}.sock", f"--arena={arena}", "--commit-reserves")


def write_until_it_dies(arena: Path, writing: threading.Event) -> None:
    with suppress(EndedError, OSError), opened(f"unix:{arena}.sock", "swap0") as client:
        while True:
            for offset in range(0, 32 * MIB, 1 << 16):
                client.write(offset, os.urandom(1 << 15) + bytes(1 << 15))
                if offset > RESERVE // 2:
                    writing.set()


def test_the_memory_of_a_reserve_is_there_before_it_is_written_and_stays(arena: Path) -> None:
    with daemon(*flags(arena)) as running, tmem.connect(running.address) as store:
        before = taken(arena)
        store.create_export("swap0", 64 * MIB, reserve=RESERVE)
        assert taken(arena) >= before + RESERVE
        with opened(f"unix:{arena}.sock", "swap0") as client:
            for offset in range(0, RESERVE, MIB):
                client.write(offset, os.urandom(MIB))
            client.do(Cmd.TRIM, 0, RESERVE)
        assert taken(arena) >= before + RESERVE
        eventually(lambda: not store.exports()[0].clients)
        store.remove_export("swap0")
        assert taken(arena) < before + MIB


def test_it_outlasts_a_killed_daemon_and_is_whole_again_with_the_next(arena: Path) -> None:
    with daemon(*flags(arena)) as running, tmem.connect(running.address) as store:
        store.create_export("swap0", 64 * MIB, reserve=RESERVE)
        writing = threading.Event()
        writer = threading.Thread(target=write_until_it_dies, args=(arena, writing))
        writer.start()
        assert writing.wait(PATIENCE)
        running.kill()
        writer.join(PATIENCE)
    with daemon(*flags(arena)) as running, tmem.connect(running.address) as store:
        assert store.exports()[0].reserve == RESERVE
        assert tmem_engine.Engine.attach(arena, errors=errors).check() == []
        with opened(f"unix:{arena}.sock", "swap0") as client:
            client.do(Cmd.TRIM, 0, 64 * MIB)
        assert tmem_engine.Engine.attach(arena, errors=errors).check() == []
        assert taken(arena) >= RESERVE
    with daemon(*flags(arena)[:2]):
        assert taken(arena) < RESERVE // 2


def test_a_reserve_that_the_machine_does_not_have_is_refused_and_leaves_nothing(arena: Path) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * 4096
    running = Daemon(*flags(arena), memory=f"{4 * total // MIB}MiB")
    try:
        before = taken(arena)
        with tmem.connect(running.address, timeout=PATIENCE) as store:
            with pytest.raises(tmem.TmemError, match="the machine has"):
                store.create_export("swap0", 4 * total // MIB * MIB, reserve=2 * total // MIB * MIB)
            assert store.exports() == []
            store.create_export("swap0", MIB, reserve=MIB)
        assert taken(arena) < before + 64 * MIB
    finally:
        running.stop()


def fill(tmpfs: Tmpfs) -> None:
    """Leave no room to anybody."""
    with (tmpfs.path / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def engine_on(tmpfs: Tmpfs) -> tuple[tmem_engine.Engine, tmem_engine.EnginePool]:
    engine = tmem_engine.Engine.open(
        errors=errors, memory=64 * MIB, accept_threshold=90, arena=tmpfs.path / "arena", shards=2
    )
    engine.commit_reserves(True)
    return engine, engine.pool("swap0", SETTINGS)


def test_a_file_system_that_gives_no_more_is_told_and_nothing_is_kept(small_tmpfs: Tmpfs) -> None:
    engine, pool = engine_on(small_tmpfs)
    before = taken(small_tmpfs.path / "arena")
    with pytest.raises(tmem.ExhaustedError, match="the system refuses more"):
        pool.set_reserve(RESERVE)
    assert pool.reserve() == 0
    assert taken(small_tmpfs.path / "arena") < before + MIB
    assert engine.check() == []


def test_a_reserve_is_written_where_nothing_else_can_be(small_tmpfs: Tmpfs) -> None:
    engine, pool = engine_on(small_tmpfs)
    pool.set_reserve(4 * MIB)
    fill(small_tmpfs)
    index = 0
    while pool.stats()["footprint_bytes"] + 16 * 4096 <= 4 * MIB:
        page = os.urandom(4096 - 512 * (index % 7)).ljust(4096, b"\0")
        stored = pool.put(1, {index: page})
        assert stored == b"\1", f"page {index} is refused at {pool.stats()['footprint_bytes']} bytes"
        index += 1
    assert engine.check() == []
