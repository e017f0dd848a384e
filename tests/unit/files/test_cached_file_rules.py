"""Never stale, once: files whose clock ticks slowly and which change at the worst moments, read step by step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

import tmem
from tests.lib.support import PATIENCE, page
from tmem._files.cache_health import CacheHealth
from tmem._files.cached_file import CachedFile
from tmem._files.identity import Identity, Origin, SettledRule
from tmem._files.pages import FileStore
from tmem._files.reader import FileReader
from tmem._files.stats import FileCounters

TICK = 2.0
SIZE = 16384


class Disk:
    """A file whose times have the granularity of FAT's, and whose clock the test moves."""

    name = "file"
    origin = Origin(b"disk", local=True, cacheable=True)

    def __init__(self, content: bytes) -> None:
        self.clock = 1000.0
        self.reads: list[tuple[int, int]] = []
        self.before_read: Callable[[], None] = lambda: None
        self.after_read: Callable[[], None] = lambda: None
        self.write(content)

    def write(self, content: bytes) -> None:
        self.content = content
        self.stamp = int(self.clock // TICK * TICK * 1e9)

    def identify(self) -> Identity:
        return Identity(1, len(self.content), self.stamp, self.stamp)

    def read_into(self, view: memoryview, offset: int) -> int:
        self.reads.append((offset, len(view)))
        self.before_read()
        found = self.content[offset : offset + len(view)]
        view[: len(found)] = found
        self.after_read()
        return len(found)

    def close(self) -> None:
        pass


class AtOnce:
    """Workers whose jobs are done before anything else."""

    def submit(self, job: Callable[[], object]) -> bool:
        job()
        return True


@pytest.fixture
def disk() -> Disk:
    return Disk(page(1, SIZE) + page(2, SIZE) + b"tail")


@pytest.fixture
def pool(store: tmem.Store) -> tmem.Pool:
    return store.pool("cache0", kind="ephemeral", shared=True, page_size=SIZE)


@pytest.fixture
def opened(disk: Disk, pool: tmem.Pool) -> Iterator[Callable[[], CachedFile]]:
    """Opens the file as another process would, without anything at hand."""
    files = []

    def open_anew(readahead: int = 0) -> CachedFile:
        counters = FileCounters()
        cache = FileStore(lambda: pool, patience=10, direct=True, counters=counters, health=CacheHealth())
        settled = SettledRule(TICK, True, lambda: disk.clock)
        reader = FileReader(disk, cache, settled=settled, readahead=readahead, counters=counters)
        files.append(CachedFile(disk, reader, counters))
        return files[-1]

    yield open_anew
    for file in files:
        file.close()


Opened = Callable[..., CachedFile]


def warm(disk: Disk, opened: Opened) -> None:
    """Have the store hold the whole file, and forget how."""
    disk.clock += 10
    with opened() as file:
        assert file.read() == disk.content
    disk.reads.clear()


def test_a_page_is_read_from_the_disk_once_for_all(disk: Disk, opened: Opened) -> None:
    warm(disk, opened)
    with opened() as file:
        assert file.read() == disk.content
        assert file.stats() == tmem.FileStats(
            reads=1, bytes_read=len(disk.content), pages_hit=3, bytes_saved=3 * SIZE, disk_reads=0
        )
    assert disk.reads == []


def test_two_changes_within_a_tick_are_told_apart(disk: Disk, opened: Opened) -> None:
    old, new = page(1, SIZE), page(3, SIZE)
    disk.write(old)
    with opened() as first:
        assert first.read() == old
    disk.clock += TICK / 4
    disk.write(new)
    disk.clock += 10
    with opened() as second:
        assert second.read() == new
        assert second.stats().pages_hit == 0


def test_a_file_that_changed_lately_is_read_past_the_store(disk: Disk, opened: Opened, pool: tmem.Pool) -> None:
    disk.write(page(1, SIZE))
    disk.clock += TICK
    with opened() as file:
        assert file.read_at(0, SIZE) == page(1, SIZE)
        assert file.stats().bypassed == 1
    assert pool.stats()["pages"] == 0
    disk.clock += 0.1
    with opened() as file:
        file.read_at(0, SIZE)
    assert pool.stats()["pages"] == 1


def test_what_was_read_while_the_file_changed_is_not_kept(disk: Disk, opened: Opened, pool: tmem.Pool) -> None:
    disk.clock += 10
    old, new = disk.content, page(9, SIZE) * 2 + b"tail"
    # The stamp comes first and the bytes later, as in the kernel.
    for moment in ("before_read", "after_read"):
        disk.write(old)
        disk.clock += 10
        setattr(disk, moment, lambda: disk.write(new))
        with opened() as file:
            assert file.read_at(0, SIZE) in (old[:SIZE], new[:SIZE])
            setattr(disk, moment, lambda: None)
            assert file.read() == new
        assert pool.stats()["pages"] == 0
        disk.clock += 10


def test_a_read_half_from_the_store_is_not_torn_by_a_change(disk: Disk, opened: Opened) -> None:
    disk.clock += 10
    with opened() as file:
        file.read_at(0, SIZE)
    new = page(8, SIZE) + page(9, SIZE)
    disk.before_read = lambda: disk.write(new)
    with opened() as file:
        assert file.read_at(0, 2 * SIZE) == new


def test_an_open_file_sees_every_change_at_once(disk: Disk, opened: Opened) -> None:
    warm(disk, opened)
    with opened() as file:
        assert file.read_at(0, 4) == disk.content[:4]
        for content in (page(5, SIZE) * 3, page(5, SIZE)[:100], b"", page(6, SIZE) * 4 + b"more"):
            disk.write(content)
            assert [file.read_at(0, 10**6), file.seek(0, 2)] == [content, len(content)]
            disk.clock += 10
            assert file.read_at(0, 10**6) == content
            assert file.read_at(0, 10**6) == content
        assert file.stats().stale_identities == 4


def test_a_tail_shorter_than_a_page_ends_where_the_file_does(disk: Disk, opened: Opened) -> None:
    warm(disk, opened)
    with opened() as file:
        assert file.read_at(2 * SIZE, 100) == b"tail"
        assert file.read_at(2 * SIZE + 4, 100) == b""
        disk.clock += 10
        disk.write(disk.content + b"\0\0\0\0and on")
        disk.clock += 10
        assert file.read_at(2 * SIZE, 100) == b"tail\0\0\0\0and on"


def test_a_page_that_the_store_forgot_is_read_again(disk: Disk, opened: Opened, store: tmem.Store) -> None:
    warm(disk, opened)
    store.relinquish("32MiB")
    with opened() as file:
        assert file.read() == disk.content
        assert file.stats().pages_missed == 3


def test_threads_that_miss_the_same_page_read_the_disk_once(disk: Disk, opened: Opened) -> None:
    disk.clock += 10
    file = opened()
    arrived, threads = threading.Barrier(5), 4
    reading, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reading.set()
        assert go_on.wait(PATIENCE)

    disk.before_read = hold
    found: list[bytes] = []

    def read() -> None:
        arrived.wait(PATIENCE)
        found.append(file.read_at(10, SIZE))

    running = [threading.Thread(target=read) for _ in range(threads)]
    for thread in running:
        thread.start()
    arrived.wait(PATIENCE)
    assert reading.wait(PATIENCE)
    go_on.set()
    for thread in running:
        thread.join(PATIENCE)
    assert found == [disk.content[10 : 10 + SIZE]] * threads
    assert len(disk.reads) == 1


def test_an_error_of_the_disk_reaches_every_reader_and_nothing_is_stuck(disk: Disk, opened: Opened) -> None:
    disk.clock += 10
    file = opened()

    def fail() -> None:
        raise OSError(5, "Input/output error")

    disk.before_read = fail
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            file.read_at(0, 10)
    disk.before_read = lambda: None
    assert file.read_at(0, 10) == disk.content[:10]


def test_read_ahead_is_ahead_and_counted(disk: Disk, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmem._files.reader._READERS", AtOnce())
    disk.write(b"".join(page(number, SIZE) for number in range(64)))
    disk.clock += 10
    with opened(readahead=16 * SIZE) as file:
        for number in range(64):
            assert file.read_at(number * SIZE, SIZE) == page(number, SIZE)
    stats = file.stats()
    assert (stats.pages_missed, stats.pages_hit) == (3, 61)
    assert stats.readahead_pages == stats.readahead_used == 61
    assert len(disk.reads) < 16
    assert sum(length for _, length in disk.reads) == 64 * SIZE


def test_read_ahead_that_nobody_used_is_counted_as_wasted(
    disk: Disk, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmem._files.reader._READERS", AtOnce())
    disk.write(page(1, SIZE) * 64)
    disk.clock += 10
    with opened(readahead=16 * SIZE) as file:
        for number in range(3):
            file.read_at(number * SIZE, SIZE)
    assert file.stats().readahead_pages == file.stats().readahead_wasted == 4


def test_a_file_that_does_not_say_its_size_is_read_as_it_comes(
    disk: Disk, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "identify", lambda: Identity(1, 0, 0, 0))
    with opened() as file:
        assert file.read() == disk.content


def test_a_pool_that_is_destroyed_does_no_harm(disk: Disk, opened: Opened, pool: tmem.Pool) -> None:
    warm(disk, opened)
    with opened() as file:
        pool.destroy()
        assert file.read() == disk.content
        assert file.stats().store_failures == 1
