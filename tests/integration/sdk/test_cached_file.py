"""CachedFile over real files, real stores and real processes."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

import tmem
from tests.integration.sdk import cached_file_model as model
from tests.lib.daemon import Daemon, daemon
from tests.lib.retry import eventually
from tests.lib.support import PATIENCE, run
from tmem._files.cache_health import CacheHealth
from tmem._files.cached_file import CachedFile
from tmem._files.identity import SettledRule
from tmem._files.pages import FileStore
from tmem._files.reader import FileReader
from tmem._files.source import FileSource
from tmem._files.stats import FileCounters

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 16384
REST = 0.02
CONTENT = run(0, 60, SIZE) + b"the tail"


@pytest.fixture(scope="module")
def server() -> Iterator[Daemon]:
    with daemon("--memory", "64MiB") as running:
        yield running


@pytest.fixture(params=["embedded", "shm", "grpc"])
def store(request: pytest.FixtureRequest, arena: Path, server: Daemon) -> Iterator[tmem.Store]:
    ways: dict[str, Any] = {
        "embedded": lambda: tmem.open(memory="32MiB"),
        "shm": lambda: tmem.open(memory="32MiB", arena=arena),
        "grpc": lambda: tmem.connect(server.address),
    }
    with ways[request.param]() as store:
        yield store
        for pool in store.pools():
            pool.destroy()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that has rested for `REST`."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    rested(path)
    return path


def rested(path: Path) -> None:
    while time.time() - path.stat().st_ctime <= REST + 0.02:
        time.sleep(0.005)


def cached(path: Path, store: tmem.Store, **options: Any) -> CachedFile:
    return tmem.open_cached(path, store=store, **{"settle": REST, "patience": 10.0, **options})


class SlowSource(FileSource):
    """A file on storage that takes a while for each read."""

    seconds = 0.0

    def read_into(self, view: memoryview, offset: int) -> int:
        time.sleep(self.seconds)
        return super().read_into(view, offset)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[SlowSource]:
    """Files are on slow storage; a test may say how slow."""
    monkeypatch.setattr("tmem._files.cached_file.FileSource", SlowSource)
    monkeypatch.setattr(SlowSource, "seconds", 0.002)
    return SlowSource


def test_what_one_opener_read_the_next_has_from_the_store(store: tmem.Store, path: Path) -> None:
    with cached(path, store) as first:
        assert first.read() == CONTENT
    assert first.stats().puts == 61
    with cached(path, store) as second:
        assert second.read() == CONTENT
    assert (second.stats().disk_reads, second.stats().pages_hit) == (0, 61)


def test_it_is_a_file_like_any_other(store: tmem.Store, path: Path) -> None:
    with cached(path, store) as file, path.open("rb", buffering=0) as plain:
        for offset, whence in ((0, 0), (100, 0), (-5, 2), (3, 2), (-50_000, 1), (0, 1)):
            assert file.seek(offset, whence) == plain.seek(offset, whence)
            assert file.read(70_000) == plain.read(70_000)
            assert file.tell() == plain.tell()
        ours, theirs = bytearray(SIZE), bytearray(SIZE)
        assert [file.seek(5), plain.seek(5)] == [5, 5]
        assert file.readinto(ours) == plain.readinto(theirs)
        assert ours == theirs
        assert file.read_at(SIZE - 1, 2) == CONTENT[SIZE - 1 : SIZE + 1]
        assert file.tell() == plain.tell()
        assert [file.readable(), file.seekable(), file.writable()] == [True, True, False]
        assert [file.mode, file.name] == ["rb", str(path)]
        for call in (file.fileno, lambda: file.truncate(0)):
            with pytest.raises(io.UnsupportedOperation):
                call()
        with pytest.raises(ValueError, match="cannot be negative"):
            file.seek(-1)
        with pytest.raises(ValueError, match="offset is -1"):
            file.read_at(-1, 1)
        assert file.read_at(10**18, 10**18) == b""
    assert file.closed
    for use in (file.read, file.tell, lambda: file.seek(0), lambda: file.read_at(0, 1), file.readall):
        with pytest.raises(ValueError, match="closed file"):
            use()
    file.close()


def test_buffered_readers_and_zip_files_work_on_it(store: tmem.Store, path: Path) -> None:
    with io.BufferedReader(cached(path, store)) as buffered:
        assert list(buffered) == list(io.BytesIO(CONTENT))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one", CONTENT)
    rested(path)
    for _ in range(2):
        with cached(path, store) as file, zipfile.ZipFile(file) as archive:
            assert archive.read("one") == CONTENT
    assert file.stats().disk_reads == 0


def test_truncated_appended_replaced_and_deleted_files(store: tmem.Store, path: Path) -> None:
    with cached(path, store) as file:
        assert file.read() == CONTENT
        with path.open("r+b") as writer:
            writer.truncate(SIZE + 1)
        assert file.read_at(SIZE - 1, 100) == CONTENT[SIZE - 1 : SIZE + 1]
        with path.open("ab") as writer:
            writer.write(b"appended")
        assert file.read_at(SIZE, 100) == CONTENT[SIZE : SIZE + 1] + b"appended"
        other = path.with_suffix(".new")
        other.write_bytes(b"another")
        other.rename(path)
        assert file.read_at(SIZE, 100) == CONTENT[SIZE : SIZE + 1] + b"appended"
        with cached(path, store) as replaced:
            assert replaced.read() == b"another"
            path.unlink()
            assert replaced.read_at(0, 100) == b"another"


def test_random_changes_by_a_process_are_never_missed_by_others(arena: Path, tmp_path: Path) -> None:
    path, seed = tmp_path / "file", 20260101
    path.write_bytes(model.History(seed).state(0)[0])
    spawn = multiprocessing.get_context("spawn")
    begun, done, hits = (spawn.Value("q", 0) for _ in range(3))
    with tmem.open(memory="32MiB", arena=arena) as store:
        # Small pages, so that a change touches some and leaves others.
        store.pool("cache0", kind="ephemeral", shared=True, page_size=4096)
        readers = [spawn.Process(target=model.read, args=(path, arena, seed, begun, done, hits)) for _ in range(2)]
        writer = spawn.Process(target=model.write, args=(str(path), seed, 25, begun, done, hits))
        for process in (*readers, writer):
            process.start()
        try:
            writer.join(PATIENCE)
            assert writer.exitcode == 0
            for process in readers:
                process.join(PATIENCE)
                assert process.exitcode == 0
        finally:
            for process in (*readers, writer):
                process.kill()
        assert store.stats()["gets_hit"] > 100
        assert store.check() == []


_READ = """
import sys, tmem
address, path = sys.argv[1:]
with tmem.connect(address) as store:
    with tmem.open_cached(path, store=store, settle=0.02, patience=10, volume="san7", readahead=0) as file:
        file.readall()
print(file.stats().disk_reads, file.stats().pages_hit)
"""


def test_processes_share_pages_through_a_daemon(server: Daemon, path: Path) -> None:
    command = [sys.executable, "-c", _READ, server.address, str(path)]
    said = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(2)]
    assert said == [["1", "0"], ["0", "61"]]
    with tmem.connect(server.address) as store:
        assert store.find_pool("cache0").destroy() == 61


@pytest.mark.usefixtures("slow")
def test_many_threads_read_what_is_there(store: tmem.Store, path: Path) -> None:
    wrong: list[int] = []
    with cached(path, store, patience=PATIENCE) as file:

        def read(first: int) -> None:
            for offset in range(first, len(CONTENT), 30_011):
                if file.read_at(offset, 20_000) != CONTENT[offset : offset + 20_000]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(number * 3,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert wrong == []
    stats = file.stats()
    assert stats.bypassed == 0
    # What could not be put, the store being slower than the readers, is read again.
    assert stats.puts_dropped or stats.disk_bytes <= len(CONTENT)


@pytest.mark.usefixtures("slow")
def test_a_warm_store_spares_slow_storage(store: tmem.Store, path: Path) -> None:
    with cached(path, store) as file:
        file.read()
    with cached(path, store) as file:
        for offset in range(0, len(CONTENT), SIZE):
            assert file.read_at(offset, SIZE) == CONTENT[offset : offset + SIZE]
            if offset == 4 * SIZE:
                eventually(lambda: file.stats().readahead_pages > 0)
    stats = file.stats()
    assert stats.disk_reads == 0
    assert stats.readahead_used > 0
    assert stats.bytes_saved >= len(CONTENT)


def test_a_daemon_that_is_killed_and_comes_back(path: Path, slow: type[SlowSource]) -> None:
    slow.seconds = 0.02
    with daemon("--memory", "32MiB") as running, tmem.connect(running.address, timeout=1) as store:
        with cached(path, store, readahead=0) as file:
            assert file.read() == CONTENT
        with cached(path, store, readahead=0, patience=0.5) as file:
            assert file.read_at(0, SIZE) == CONTENT[:SIZE]
            assert file.stats().pages_hit == 1
            running.kill()
            begun = time.monotonic()
            for offset in range(0, 20 * SIZE, SIZE):
                assert file.read_at(offset, SIZE) == CONTENT[offset : offset + SIZE]
            assert time.monotonic() - begun < 20 * 0.5, "reads waited for a store that is away"
            assert file.stats().store_failures > 0
            running.start()
            pages = file.stats().puts
            end = time.monotonic() + PATIENCE
            while file.stats().puts == pages:
                assert time.monotonic() < end, "the store was not taken up again"
                assert file.read_at(5 * SIZE, 100 * SIZE) == CONTENT[5 * SIZE :]
                file._reader._cache.drop()


@pytest.mark.usefixtures("slow")
def test_a_daemon_that_hangs_holds_up_one_read_only(path: Path) -> None:
    with daemon("--memory", "32MiB") as running, tmem.connect(running.address) as store:
        with cached(path, store, readahead=0) as file:
            file.read()
        with cached(path, store, readahead=0, patience=0.3) as file:
            running.process.send_signal(signal.SIGSTOP)
            try:
                begun = time.monotonic()
                for offset in range(0, len(CONTENT), SIZE):
                    assert file.read_at(offset, SIZE) == CONTENT[offset : offset + SIZE]
                assert time.monotonic() - begun < 50 * 0.3
            finally:
                running.process.send_signal(signal.SIGCONT)
        assert file.stats().bypassed > 50


def test_a_store_that_is_away_or_closed_is_done_without(path: Path) -> None:
    with tmem.connect("127.0.0.1:1", timeout=1) as away, cached(path, away, patience=0.05) as file:
        assert file.read() == CONTENT
        assert file.stats().bypassed > 0
    with tmem.open(memory="32MiB") as store:
        file = cached(path, store)
    assert file.read() == CONTENT
    file.close()


def test_pools_that_cannot_be_used_are_refused_with_the_reason(path: Path) -> None:
    with tmem.open(memory="32MiB") as store:
        store.pool("swap")
        store.pool("private", kind="ephemeral")
        kept = store.pool("kept", kind="ephemeral", inclusive=True, page_size=8192, quota="1MiB")
        for name in ("swap", "private"):
            with pytest.raises(tmem.MismatchError, match=f"{name!r} cannot cache files"):
                cached(path, store, pool=name)
        with pytest.raises(tmem.MismatchError, match="another page_size: 8192, not 4096"):
            cached(path, store, pool="kept", page_size=4096)
        with cached(path, store, pool="kept") as file:
            assert file.read() == CONTENT
        assert kept.stats()["pages"] > 0
        with cached(path, store, pool="made", page_size="64KiB") as file:
            assert file.read() == CONTENT
        assert store.find_pool("made").page_size == 65536


def test_bad_arguments_are_refused_and_leave_nothing_open(path: Path) -> None:
    with tmem.open(memory="32MiB") as store:
        before = len(os.listdir("/proc/self/fd"))
        for options, error in (
            ({"settle": -1}, "settle is -1"),
            ({"patience": float("nan")}, "patience is nan"),
            ({"readahead": "2GiB"}, "readahead is 2147483648"),
            ({"volume": ""}, "volume is ''"),
            ({"page_size": 5000}, "page_size"),
        ):
            with pytest.raises(ValueError, match=error):
                cached(path, store, **options)
        with pytest.raises(TypeError, match="settle must be a number"):
            cached(path, store, settle="2s")
        with pytest.raises(TypeError, match="store must be a tmem"):
            cached(path, store.pool("cache0"))  # type: ignore[arg-type]
        with pytest.raises(FileNotFoundError):
            cached(path.with_name("none"), store)
        assert len(os.listdir("/proc/self/fd")) == before


def test_made_up_files_are_read_past_the_store() -> None:
    with tmem.open(memory="32MiB") as store, tmem.open_cached("/proc/self/status", store=store) as file:
        assert b"Pid:" in file.read()
        assert file.stats().bypassed > 0


def test_a_store_too_slow_for_the_file_is_gone_around(path: Path, server: Daemon) -> None:
    """The page cache answers in microseconds; a daemon does not."""
    with tmem.connect(server.address) as store, cached(path, store, readahead=0) as file:
        end = time.monotonic() + PATIENCE
        while not file.stats().bypassed:
            assert time.monotonic() < end
            file._reader._cache.drop()
            # Without its pages in the store each read is a miss there and one of the file: both are timed.
            store.find_pool("cache0").flush_object(file._source.origin.oid(file._source.identify()))
            assert file.read_at(0, SIZE) == CONTENT[:SIZE]
    with contextlib.suppress(tmem.UnknownPoolError), tmem.connect(server.address) as store:
        store.find_pool("cache0").destroy()


def test_a_source_that_is_not_local_waits_for_the_file_to_be_watched(path: Path) -> None:
    with tmem.open(memory="32MiB") as store:
        counters = FileCounters()
        source = FileSource(path, "san7")
        pool = store.pool("cache0", kind="ephemeral", shared=True, page_size=SIZE)
        cache = FileStore(lambda: pool, patience=1, direct=True, counters=counters, health=CacheHealth())
        reader = FileReader(source, cache, settled=SettledRule(0.2, False), readahead=0, counters=counters)
        with CachedFile(source, reader, counters) as file:
            assert file.read() == CONTENT
            assert file.stats().bypassed > 0
            end = time.monotonic() + PATIENCE
            while not file.stats().pages_missed:
                assert time.monotonic() < end
                assert file.read_at(0, 10) == CONTENT[:10]
