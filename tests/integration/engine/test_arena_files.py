"""Arenas in files: created, attached, shared, and refused with the reason when they cannot be used."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import tmem
from tests.conftest import Tmpfs
from tests.lib.support import noise, page, run

ATTACH: list[Callable[[Path], tmem.Store]] = [
    lambda arena: tmem.open(memory="4MiB", arena=arena),
    lambda arena: tmem.connect(f"shm://{arena}"),
]
VERSION_AT = 8  # the layout version, four bytes, after the magic


def test_an_arena_is_created_once_and_attached_after(arena: Path) -> None:
    with tmem.open(memory="4MiB", arena=arena) as store:
        store.pool("swap0").put_range(1, 0, run(0, 20))
    with tmem.open(memory="4MiB", arena=arena) as store:
        assert store.find_pool("swap0").get_range(1, 0, 20) == (bytearray(run(0, 20)), b"\1" * 20)
        assert store.check() == []


def test_an_arena_is_for_its_owner_alone_and_sparse(arena: Path) -> None:
    with tmem.open(memory="1GiB", arena=arena):
        status = arena.stat()
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_blocks * 512 < 1 << 20


def test_connect_attaches(arena: Path) -> None:
    with tmem.open(memory="4MiB", arena=arena) as one, tmem.connect(f"shm://{arena}") as two:
        one.pool("swap0").put(1, {7: page(7)})
        pool = two.find_pool("swap0")
        assert pool.get(1, [7]) == {7: page(7)}
        pool.put(1, {7: page(8)})
        assert one.pool("swap0").get(1, [7]) == {7: page(8)}
        assert (two.memory, two.arena) == (4 << 20, str(arena))
        one.close()
        assert pool.get(1, [7]) == {7: page(8)}
        assert two.check() == []


def test_relative_paths_work(arena: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(arena.parent)
    with tmem.open(memory="4MiB", arena="arena"), tmem.connect("shm://./arena") as store:
        assert store.pools() == []


@pytest.mark.parametrize(
    ("settings", "difference"),
    [({"memory": "8MiB"}, "memory"), ({"shards": 4}, "shards"), ({"accept_threshold": 50}, "accept_threshold")],
)
def test_a_second_open_with_other_settings_names_the_difference(
    arena: Path, settings: dict[str, str | int], difference: str
) -> None:
    with tmem.open(memory="4MiB", shards=1, arena=arena) as store:
        store.pool("swap0").put(1, {7: page(7)})
        with pytest.raises(tmem.MismatchError, match=difference):
            tmem.open(**{"memory": "4MiB", "shards": 1, "arena": arena} | settings)  # type: ignore[arg-type]
        assert store.pool("swap0").get(1, [7]) == {7: page(7)}


def test_a_resized_arena_stays_resized(arena: Path) -> None:
    with tmem.open(memory="4MiB", arena=arena) as store:
        store.resize("8MiB")
    with tmem.open(memory="8MiB", arena=arena) as store:
        assert store.memory == 8 << 20


def test_there_is_no_arena(arena: Path) -> None:
    with pytest.raises(tmem.ArenaError, match="No such file") as caught:
        tmem.connect(f"shm://{arena}")
    assert caught.value.path == str(arena)
    with pytest.raises(tmem.ArenaError, match="No such file"):
        tmem.open(memory="4MiB", arena=arena / "not" / "there")
    assert not arena.exists()


def contents(path: Path) -> dict[int, bytes]:
    """The data of a sparse file, by offset."""
    found, at = {}, 0
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while at < size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:  # no data beyond
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found[start] = os.pread(file.fileno(), at - start, start)
    return found


def empty(arena: Path) -> None:
    arena.write_bytes(b"")


def text(arena: Path) -> None:
    arena.write_bytes(b"no arena at all " * 4096)


def truncated(arena: Path) -> None:
    os.truncate(arena, arena.stat().st_size // 2)


def longer(arena: Path) -> None:
    os.truncate(arena, arena.stat().st_size + 4096)


def other_version(arena: Path) -> None:
    patch(arena, VERSION_AT, (2**31).to_bytes(4, "little"))


def damaged(arena: Path) -> None:
    patch(arena, VERSION_AT + 12, b"\xff" * 8)


def folder(arena: Path) -> None:
    arena.unlink()
    arena.mkdir()


def patch(arena: Path, at: int, data: bytes) -> None:
    with arena.open("r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (empty, "too short for an arena"),
        (text, "does not start as an arena"),
        (truncated, "truncated"),
        (longer, "long and should be"),
        (other_version, "version 2147483648"),
        (damaged, "damaged"),
        (folder, "directory"),
    ],
)
def test_a_file_that_is_no_sound_arena_is_refused(arena: Path, damage: Callable[[Path], None], why: str) -> None:
    tmem.open(memory="4MiB", arena=arena).close()
    damage(arena)
    before = contents(arena) if arena.is_file() else None
    for attach in ATTACH:
        with pytest.raises(tmem.ArenaError, match=why) as caught:
            attach(arena)
        assert caught.value.path == str(arena)
    assert (contents(arena) if arena.is_file() else None) == before


def corrupt(arena: Path, data: bytes) -> None:
    """Change one byte of the only copy of `data` in the arena."""
    [at] = [start + chunk.index(data) for start, chunk in contents(arena).items() if data in chunk]
    patch(arena, at + 1000, bytes([data[1000] ^ 1]))


def test_a_corrupt_persistent_page_is_an_error_with_the_good_pages(arena: Path) -> None:
    with tmem.open(memory="4MiB", arena=arena) as store:
        pool = store.pool("swap0", codec="raw")
        pool.put(1, {6: noise(6), 7: noise(7), 8: noise(8)})
        corrupt(arena, noise(7))
        with pytest.raises(tmem.CorruptPageError, match="checksum: 7") as caught:
            pool.get(1, [6, 7, 8, 9])
        assert caught.value.indices == (7,)
        assert caught.value.pages == {6: noise(6), 8: noise(8)}
        with pytest.raises(tmem.CorruptPageError) as caught:
            pool.get_range(1, 5, 4)
        assert caught.value.indices == (7,)
        assert caught.value.pages == {6: noise(6), 8: noise(8)}
        assert pool.stats()["gets_corrupt"] == 2
        pool.put(1, {7: noise(9)})
        assert pool.get(1, [7]) == {7: noise(9)}


def test_a_corrupt_ephemeral_page_is_a_miss_and_gone(arena: Path) -> None:
    with tmem.open(memory="4MiB", arena=arena) as store:
        pool = store.pool("cache", kind="ephemeral", codec="raw", inclusive=True)
        pool.put(1, {6: noise(6), 7: noise(7), 8: noise(8)})
        corrupt(arena, noise(7))
        assert pool.get(1, [6, 7, 8]) == {6: noise(6), 8: noise(8)}
        assert pool.stats()["gets_corrupt"] == 1
        assert pool.has(1, 6, 3) == b"\1\0\1"


def test_no_byte_of_a_corrupt_page_is_given_out(arena: Path) -> None:
    with tmem.open(memory="4MiB", arena=arena) as store:
        pool = store.pool("cache", kind="ephemeral", codec="raw")
        pool.put(1, {7: noise(7)})
        corrupt(arena, noise(7))
        assert pool.get_range(1, 7, 1) == (bytearray(4096), b"\0")


def test_a_full_file_system_is_a_refusal(small_tmpfs: Tmpfs) -> None:
    with tmem.open(memory="64MiB", shards=1, arena=small_tmpfs.path / "arena") as store:
        pool = store.pool("swap0")
        stored = 0
        while pool.put(1, {stored: noise(stored % 500)})[stored].stored:
            stored += 1
            assert stored < 4096
        outcome = pool.put(1, {0: noise(1000)})[0]
        assert (outcome.reason, outcome.old_flushed) in {("no_space", True), (None, False)}
        assert pool.get(1, range(1, stored)) == {index: noise(index % 500) for index in range(1, stored)}
        assert pool.stats()["refused_no_space"] >= 1
        assert store.check() == []
        pool.flush(1, range(stored // 2))
        assert pool.put(2, {0: noise(0)})[0].stored


def test_an_arena_is_not_created_on_a_full_file_system(small_tmpfs: Tmpfs) -> None:
    with pytest.raises(OSError, match="No space left"):
        (small_tmpfs.path / "filler").write_bytes(bytes(16 << 20))
    with pytest.raises(tmem.ArenaError, match="No space left"):
        tmem.open(memory="4MiB", arena=small_tmpfs.path / "arena")
    assert not (small_tmpfs.path / "arena").exists()


def test_a_read_only_file_is_refused(small_tmpfs: Tmpfs) -> None:
    arena = small_tmpfs.path / "arena"
    tmem.open(memory="4MiB", arena=arena).close()
    small_tmpfs.remount("ro")
    for attach in ATTACH:
        with pytest.raises(tmem.ArenaError, match="Read-only file system"):
            attach(arena)
    with pytest.raises(tmem.ArenaError, match="Read-only file system"):
        tmem.open(memory="4MiB", arena=arena.with_name("new"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write any file")
def test_a_file_without_permission_is_refused(arena: Path) -> None:
    tmem.open(memory="4MiB", arena=arena).close()
    arena.chmod(0o400)
    with pytest.raises(tmem.ArenaError, match="Permission denied"):
        tmem.connect(f"shm://{arena}")
