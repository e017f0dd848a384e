"""`tmem save` and `tmem restore`: a pool to a file while it is in use, and back."""

from __future__ import annotations

import io
import mmap
import stat
import struct
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tmem
from tests.lib.busy_writer import OBJECTS, PAGES, flushed, round_of
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.support import PAGE, PATIENCE, noise, page, run
from tmem.cli.archive.format import BATCH_BYTES, Pages, Reader, Writer
from tmem.cli.archive.restore import LANES, restore
from tmem.cli.archive.save import save
from tmem.cli.base.prefetch import AHEAD
from tmem.cli.base.target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

QUIET = 5


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with daemon("--memory", "64MiB") as running:
        yield running.address


def saved(file: Path) -> dict[tuple[bytes, int], bytes]:
    """The pages that a file leaves a pool with."""
    found: dict[tuple[bytes, int], bytes] = {}
    with file.open("rb") as source:
        reader = Reader(source, str(file))
        for record in reader.records():
            if isinstance(record, Pages):
                found.update(((record.oid, index), one) for index, one in record.decoded(reader.page_size).items())
            else:
                for index in record.indices:
                    found.pop((record.oid, index), None)
    return found


def test_a_pool_comes_back_as_it_was(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    pool = store.pool("swap", codec="zstd:3", max_zpage=4096, quota="32MiB")
    pool.put_range(1, 2**31 - 700, run(0, 1400))
    pool.put(b"other", {0: noise(1), 7: bytes(4096), 2**32 - 1: page(7)})
    file = tmp_path / "saved"
    assert "saved 1,403 pages of 'swap'" in cli("save", "swap", file)
    assert "restored 1,403 pages to pool 'copy'" in cli("restore", file, "--pool", "copy")
    copy = store.find_pool("copy")
    assert copy.settings == pool.settings
    assert copy.stats()["pages"] == 1403
    assert copy.get_range(1, 2**31 - 700, 1400) == pool.get_range(1, 2**31 - 700, 1400)
    assert copy.get(b"other", [0, 7, 2**32 - 1]) == pool.get(b"other", [0, 7, 2**32 - 1])
    pool.destroy()
    assert cli.json("restore", file) == {"pool": "swap", "made": True, "put": 1403, "refused": {}}
    assert store.find_pool("swap").get_range(1, 2**31 - 700, 1400)[1].count(1) == 1400
    assert list(tmp_path.iterdir()) == [file]


def test_an_arena_of_this_machine_is_saved_and_restored(tmp_path: Path) -> None:
    with tmem.open(memory="16MiB", arena=tmp_path / "arena") as store:
        pool = store.pool("swap", page_size=262144)
        pool.put_range(1, 0, run(0, 40, 262144))
        cli = Command(f"shm://{tmp_path / 'arena'}")
        cli("save", "swap", tmp_path / "saved")
        cli("restore", tmp_path / "saved", "--pool", "copy")
        assert store.find_pool("copy").get_range(1, 0, 40)[0] == run(0, 40, 262144)


def test_what_changes_during_the_save_is_seen_by_a_further_pass(store: tmem.Store, tmp_path: Path) -> None:
    pool = store.pool("swap")
    pool.put_range(1, 0, run(0, 3000))
    target = Target(store, "server")
    asked = 0

    def meanwhile(_: int) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:  # the first pages are written by now
            pool.put(1, {0: page(9000), 2999: page(9001)})
            pool.put(2, {5: page(9002)})
            pool.flush(1, [1, 2998])

    done = save(target, target.pool("swap"), tmp_path / "saved", meanwhile)
    assert asked > 2
    found = saved(tmp_path / "saved")
    expected = {((1).to_bytes(24, "big"), at): one for at, one in pool.get(1, range(3000)).items()}
    assert found == expected | {((2).to_bytes(24, "big"), 5): page(9002)}
    assert (done.pages, done.unsettled) == (2999, 0)
    assert done.changed >= 3


def test_a_page_that_goes_between_scan_and_get_is_left_out(store: tmem.Store, tmp_path: Path) -> None:
    asked_for_by_then = AHEAD * BATCH_BYTES // PAGE
    pool = store.pool("swap")
    pool.put_range(1, 0, run(0, asked_for_by_then + 1000))
    target = Target(store, "server")

    def meanwhile(_: int) -> None:
        pool.flush(1, range(asked_for_by_then, asked_for_by_then + 1000))

    done = save(target, target.pool("swap"), tmp_path / "saved", meanwhile, passes=1)
    assert done.pages == len(saved(tmp_path / "saved")) == asked_for_by_then


@contextmanager
def writing(server: str, tmp_path: Path) -> Iterator[mmap.mmap]:
    """A process that puts and flushes all the time; its round, begun and done, is in the memory given."""
    shared = tmp_path / "round"
    shared.write_bytes(bytes(16))
    command = [sys.executable, "-m", "tests.lib.busy_writer", server, "swap", str(shared)]
    with shared.open("r+b") as handle, mmap.mmap(handle.fileno(), 16) as rounds:
        writer = subprocess.Popen(command)
        try:
            while struct.unpack("QQ", rounds[:16])[1] < 3:
                assert writer.poll() is None
            yield rounds
            assert writer.poll() is None
        finally:
            writer.kill()
            writer.wait()


def test_a_pool_in_use_is_saved_as_it_was_at_moments_of_the_save(
    cli: Command, store: tmem.Store, server: str, tmp_path: Path
) -> None:
    store.pool("swap").put_range(QUIET, 0, run(0, 4000))
    with writing(server, tmp_path) as rounds:
        _, before = struct.unpack("QQ", rounds[:16])
        said = cli.json("save", "swap", tmp_path / "saved")
        after, _ = struct.unpack("QQ", rounds[:16])
    assert after > before + 1, "the writer did not get on during the save"
    assert said["changed"] > 0
    cli("restore", tmp_path / "saved", "--pool", "copy")
    copy = store.find_pool("copy")
    assert copy.get_range(QUIET, 0, 4000)[0] == run(0, 4000)
    for number in range(OBJECTS):
        pages = copy.get(100 + number, range(PAGES))
        for index in range(PAGES):
            if index in pages:
                assert before <= round_of(pages[index], number, index) <= after
            else:
                assert any(flushed(turn, number, index) for turn in range(before, after + 1)), (number, index)


def test_a_file_that_is_cut_touches_nothing(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    store.pool("swap").put_range(1, 0, run(0, 600))
    file = tmp_path / "saved"
    cli("save", "swap", file)
    whole = file.read_bytes()
    for data, why in (
        (whole[:-1], "truncated"),
        (whole[: len(whole) // 2], "truncated"),
        (b"?" + whole, "not a file of saved"),
    ):
        file.write_bytes(data)
        said = cli.fails("restore", file, "--pool", "copy")
        assert str(file) in said
        assert why in said
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    file.write_bytes(damaged)
    assert "fails its checksum" in cli.fails("restore", file, "--pool", "copy")
    assert [pool.name for pool in store.pools()] == ["swap"]


def test_a_page_that_was_saved_damaged_is_not_put(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    sink = io.BytesIO()
    writer = Writer(sink, {"pool": "copy", "settings": cli_settings(store)})
    writer._write(b"P", bytes(24) + struct.pack("<IIII", 1, 7, 4096, 12345) + page(7))
    writer._pages += 1
    writer.end()
    file = tmp_path / "saved"
    file.write_bytes(sink.getvalue())
    assert "page 7 of object" in cli.fails("restore", file)
    assert store.find_pool("copy").stats()["pages"] == 0


def cli_settings(store: tmem.Store) -> dict[str, object]:
    """Settings as a header has them."""
    pool = store.pool("template")
    return {name: getattr(pool.settings, name) for name in pool.settings.__slots__}


class SlowAtFirst(tmem.Pool):
    """A pool whose first put waits until other objects were put to."""

    def __init__(self, pool: tmem.Pool) -> None:
        super().__init__(pool._transport)
        self._lock = threading.Lock()
        self._first: object = None
        self._go_on = threading.Event()

    def put(self, oid: Any, pages: Any) -> dict[int, tmem.Outcome]:
        with self._lock:
            first = self._first is None
            self._first = self._first or oid
        if first:
            self._go_on.wait(PATIENCE)
        elif oid != self._first:
            self._go_on.set()
        return super().put(oid, pages)


def test_later_records_win_though_records_are_put_concurrently() -> None:
    first = bytes(24)
    other = next(one for one in (bytes([at]) * 24 for at in range(1, 255)) if (hash(one) - hash(first)) % LANES)
    sink = io.BytesIO()
    with tmem.open(memory="8MiB") as store:
        writer = Writer(sink, {"pool": "copy", "settings": cli_settings(store)})
        writer.pages(first, {7: page(1), 8: page(1)})
        writer.pages(first, {7: page(2)})
        writer.tombstones(first, [8])
        writer.pages(other, {7: page(3)})
        writer.end()
        pool = SlowAtFirst(store.pool("copy"))
        done = restore(Reader(sink, "saved"), pool, True, lambda _: None)
        assert done.put == 4
        assert pool.get(first, [7, 8]) == {7: page(2)}
        assert pool.get(other, [7]) == {7: page(3)}


def test_a_save_that_is_interrupted_leaves_no_file(store: tmem.Store, tmp_path: Path) -> None:
    store.pool("swap").put_range(1, 0, run(0, 1000))
    target = Target(store, "server")

    def interrupt(_: int) -> None:
        assert [path.name[:6] for path in tmp_path.iterdir()] == [".tmem-"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(target, target.pool("swap"), tmp_path / "saved", interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [0, 1, 500], ids=["empty", "one page", "many pages"])
def test_a_pool_recreated_meanwhile_is_not_mistaken_for_the_saved_one(
    store: tmem.Store, tmp_path: Path, left: int
) -> None:
    """All pages were got by then: what the next scan sees is another pool's, and the one to be saved is gone."""
    pool = store.pool("swap")
    pool.put_range(1, 0, run(0, 500))
    target = Target(store, "server")

    def meanwhile(count: int) -> None:
        seen.append(count)
        if sum(seen) == 500:
            pool.destroy()
            store.pool("swap").put_range(1, 0, run(0, left))

    seen: list[int] = []
    with pytest.raises(tmem.UnknownPoolError, match="swap"):
        save(target, target.pool("swap"), tmp_path / "saved", meanwhile)
    assert list(tmp_path.iterdir()) == []


def test_a_restore_does_not_mix_pools_unless_told(cli: Command, store: tmem.Store, tmp_path: Path) -> None:
    pool = store.pool("swap")
    pool.put_range(1, 0, run(0, 10))
    file = tmp_path / "saved"
    cli("save", "swap", file)
    pool.put(1, {0: page(99), 50: page(50)})
    assert "--merge" in cli.fails("restore", file)
    assert pool.get(1, [0]) == {0: page(99)}
    cli("restore", file, "--merge")
    assert pool.get(1, [0, 50]) == {0: page(0), 50: page(50)}
    store.pool("other", page_size=8192)
    assert "8192" in cli.fails("restore", file, "--pool", "other")


def test_pages_that_are_refused_are_an_error_that_names_the_reason(
    cli: Command, store: tmem.Store, tmp_path: Path
) -> None:
    store.pool("swap").put_range(1, 0, b"".join(map(noise, range(300))))
    cli("save", "swap", tmp_path / "saved")
    store.pool("small", quota="256KiB")
    said = cli.fails("restore", tmp_path / "saved", "--pool", "small")
    assert "for quota" in said
    assert "tmem pool quota small" in said


def test_a_save_replaces_files_only_by_force_and_refuses_ephemeral_pools(
    cli: Command, store: tmem.Store, tmp_path: Path
) -> None:
    store.pool("swap").put(1, {7: page(7)})
    store.pool("cache", kind="ephemeral")
    file = tmp_path / "saved"
    file.write_text("precious")
    assert "--force" in cli.fails("save", "swap", file, status=2)
    assert file.read_text() == "precious"
    cli("save", "swap", file, "--force")
    assert len(saved(file)) == 1
    assert "ephemeral" in cli.fails("save", "cache", tmp_path / "other")
    assert "no pool" in cli.fails("save", "nowhere", tmp_path / "other")
    assert "nonexistent" in cli.fails("save", "swap", "/nonexistent/file")
    assert list(tmp_path.iterdir()) == [file]


def test_a_save_is_private_and_standard_output_carries_nothing_else(
    cli: Command, store: tmem.Store, tmp_path: Path
) -> None:
    store.pool("swap").put_range(1, 0, run(0, 10))
    file, link = tmp_path / "saved", tmp_path / "link"
    cli("save", "swap", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    link.symlink_to(file)
    file.chmod(0o640)
    assert "--force" in cli.fails("save", "swap", link, status=2)
    cli("save", "swap", link, "--force")
    assert (link.is_symlink(), stat.S_IMODE(file.stat().st_mode)) == (True, 0o640)
    for more in ((), ("--json",)):
        done = cli.run("save", "swap", "-", *more)
        assert done.exit_code == 0
        assert len(list(Reader(io.BytesIO(done.stdout_bytes), "-").records())) == 1
        assert "10" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "saved"]


def test_a_saved_pool_is_restored_from_standard_input(store: tmem.Store, server: str) -> None:
    store.pool("swap").put_range(1, 0, run(0, 10))
    tool = f"{sys.executable} -m tmem.cli --server {server}"
    subprocess.run(f"{tool} save swap - | {tool} restore - --pool copy", shell=True, check=True, capture_output=True)
    assert store.find_pool("copy").get_range(1, 0, 10)[0] == run(0, 10)
