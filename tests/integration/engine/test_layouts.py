"""An arena of the layout before: it is migrated and served, once the daemon of that time has ended."""

from __future__ import annotations

import fcntl
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lz4.block

import tmem
from tests.block.lib.handshake import opened
from tests.integration.daemon.test_daemon import tmemd
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.support import PATIENCE
from tmem_engine import Engine
from tmemd.base import errors
from tmemd.process.arena_lock import ATTACHED, SERVED

if TYPE_CHECKING:
    from collections.abc import Iterator

FIXTURE = Path(__file__).parents[2] / "fixtures" / "layout4"
FRAME = 4096
MEMORY, SHARDS = "8MiB", 2
VERSION_AT = 8


def unpack(path: Path) -> None:
    """A copy of the fixture; its README says how it is packed."""
    packed = (FIXTURE / "arena.lz4").read_bytes()
    length, count = struct.unpack_from("<QI", packed)
    places = list(struct.iter_unpack("<QI", packed[12 : 12 + 12 * count]))
    blocks, at = [], 12 + 12 * count
    for _, size in places:
        blocks.append(packed[at : at + size])
        at += size
    path.touch(0o600)
    with path.open("r+b") as file:
        file.truncate(length)
        for (offset, _), block in zip(places, blocks, strict=True):
            file.seek(offset)
            file.write(block if len(block) == FRAME else lz4.block.decompress(block, uncompressed_size=FRAME))


def version(arena: Path) -> int:
    with arena.open("rb") as file:
        file.seek(VERSION_AT)
        return int.from_bytes(file.read(4), "little")


def held() -> Iterator[tuple[str, bytes, int, int]]:
    """Pool, oid, index and checksum of each persistent page."""
    for line in (FIXTURE / "pages.txt").read_text().splitlines():
        pool, oid, index, checksum = line.split()
        if pool not in {"cache", "shared", "private"}:
            yield pool, bytes.fromhex(oid), int(index), int(checksum, 16)


def test_a_daemon_migrates_an_arena_of_the_layout_before_and_serves_it(arena: Path) -> None:
    unpack(arena)
    flags = f"--arena={arena}", f"--shards={SHARDS}", "--nbd=tcp:127.0.0.1:0"
    for _ in range(2):
        with daemon(*flags, memory=MEMORY) as running:
            command = Command(running.address)
            listed = command.json("export", "ls")
            assert [(each["name"], each["size"]) for each in listed["exports"]] == [("vol", 1 << 20)]
            with opened(listed["addresses"][0], "vol") as volume:
                block = b"export block 3 " * 400
                assert volume.read(3 * FRAME, FRAME) == block[:FRAME]
                assert volume.read(210 * FRAME, FRAME) == bytes(1024) + b"part" * 256 + bytes(2048)
            with tmem.connect(running.address) as store:
                assert store.find_pool("zstd").frozen
            assert command.json("check")["violations"] == []
        assert version(arena) == 5
    engine = Engine.attach(arena, errors=errors)
    for pool, oid, index, checksum in held():
        found = engine.find_pool(pool)
        assert found is not None
        fetched = found.fetch(oid, [index], False)
        assert (fetched[0], fetched[2]) == (b"\1", [checksum]), (pool, index)
    engine.close()


def test_a_daemon_of_the_build_before_is_waited_for(arena: Path) -> None:
    """As when one stops while the next starts: the older holds what a daemon of layout 4 does."""
    unpack(arena)
    line = ["-m", "tmemd", "--listen=127.0.0.1:0", f"--memory={MEMORY}", f"--arena={arena}", f"--shards={SHARDS}"]
    with arena.open("r+b") as earlier:
        for byte, kind in ((ATTACHED, fcntl.F_RDLCK), (SERVED, fcntl.F_WRLCK)):
            fcntl.fcntl(earlier, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, 0, byte, 1, 0))
        running = subprocess.Popen([sys.executable, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert running.stderr is not None
        assert running.stdout is not None
        while "waiting for it to stop" not in (said := running.stderr.readline()):
            assert said, "it ended"
        assert version(arena) == 4
    while "listening on" not in (said := running.stdout.readline()):
        assert said, running.stderr.read()
    assert version(arena) == 5
    running.terminate()
    running.communicate(timeout=PATIENCE)
    assert running.returncode == 0


def test_a_daemon_serves_no_arena_that_a_link_leads_to_or_that_others_may_write(arena: Path, tmp_path: Path) -> None:
    tmem.open(memory="4MiB", arena=arena).close()
    link = tmp_path / "link"
    link.symlink_to(arena)
    for path, mode, why in ((link, 0o600, "symbolic link"), (arena, 0o666, "chmod 600")):
        arena.chmod(mode)
        ended = tmemd("--memory=4MiB", f"--arena={path}", "--listen=127.0.0.1:0")
        assert ended.returncode == 2
        assert why in ended.stderr
        assert "Traceback" not in ended.stderr
