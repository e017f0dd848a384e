"""Exports saved while their clients write: the file is the device of one instant, and no write is the worse for it."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

import pytest

import tmem
from tests.block.lib.handshake import opened
from tests.block.lib.protocol import Cmd, Err
from tests.faults.frozen import admin_held
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.retry import eventually
from tests.lib.support import PATIENCE
from tmem._protocol import snapshot_ops
from tmem.cli.archive.format import Pages, Reader
from tmem.cli.base.target import Target
from tmem_engine import set_lock_wait
from tmem_proto.v1 import admin_pb2 as pb
from tmemd.base.errors import BusyError, SnapshotError
from tmemd.config.settings import Config
from tmemd.exports.catalogue import Catalogue, ExportSpec
from tmemd.exports.snapshots import Snapshots
from tmemd.store.engine_store import EngineStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.lib.daemon import Daemon

MIB = 1 << 20


@contextmanager
def served(folder: Path, *flags: str, memory: str = "256MiB") -> Iterator[tuple[Daemon, Command, tmem.Store, str]]:
    """A daemon with NBD: itself, its command, a connection, and where the exports are."""
    address = f"unix:{folder}/nbd"
    with (
        daemon(f"--arena={folder}/arena", f"--nbd={address}", *flags, memory=memory) as running,
        tmem.connect(running.address) as store,
    ):
        yield running, Command(running.address), store, address


class Counting:
    """A client that writes its number to one block after the other, round after round, each when the last is done."""

    def __init__(self, address: str, name: str, at: int, blocks: int, size: int) -> None:
        self.rounds = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(address, name, at, blocks, size))
        self.failed: BaseException | None = None

    def __enter__(self) -> Counting:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.failed is not None:
            raise self.failed

    def _run(self, address: str, name: str, at: int, blocks: int, size: int) -> None:
        try:
            with opened(address, name) as client:
                while not self._stop.is_set():
                    for block in range(at, at + blocks):
                        client.write(block * size, numbered(self.rounds + 1, size))
                    self.rounds += 1
        except BaseException as error:
            self.failed = error


_FILL = [random.Random(seed).randbytes(16384) for seed in range(7)]


def numbered(number: int, size: int) -> bytes:
    """A block with a number, which does not compress: the file is large, and takes its time."""
    return number.to_bytes(8, "little") + _FILL[number % 7][8:size]


def image(file: Path, size: int) -> bytearray:
    """The device that a file has."""
    found = bytearray(size)
    with file.open("rb") as source:
        reader = Reader(source, str(file))
        reader.check()
        for record in reader.records():
            assert isinstance(record, Pages), "a file of one instant has nothing that went"
            for index, page in record.decoded(reader.page_size).items():
                found[index * reader.page_size : (index + 1) * reader.page_size] = page
    return found


@pytest.mark.parametrize(
    ("flags", "layout", "writers"),
    [
        ((), {}, 1),
        (("--workers=2",), {"multi_conn": True, "codec": "zstd:1", "block_size": 16384}, 3),
    ],
)
def test_a_save_under_writes_is_the_device_of_one_instant(
    tmp_path: Path, flags: tuple[str, ...], layout: dict[str, object], writers: int
) -> None:
    size = int(layout.get("block_size", 4096))  # type: ignore[call-overload]
    blocks = 6 * MIB // size // writers
    with served(tmp_path, *flags) as (_, cli, store, address):
        store.create_export("disk", writers * blocks * size, **layout)  # type: ignore[arg-type]
        with ExitStack() as stack:
            parts = [Counting(address, "disk", n * blocks, blocks, size) for n in range(writers)]
            for part in parts:
                stack.enter_context(part)
            eventually(lambda: all(part.rounds for part in parts))
            before = sum(part.rounds for part in parts)
            said = json.loads(cli("save", "export/disk", tmp_path / "saved", "--json"))
            assert 0 <= said["paused"] < PATIENCE
            assert [said["passes"], said["corrupt"], said["pages"]] == [1, 0, writers * blocks]
            eventually(lambda: sum(part.rounds for part in parts) > before)
        saved = image(tmp_path / "saved", writers * blocks * size)
        for nth in range(writers):
            of = range(nth * blocks, (nth + 1) * blocks)
            numbers = [int.from_bytes(saved[at * size : at * size + 8], "little") for at in of]
            assert numbers == sorted(numbers, reverse=True)
            assert numbers[0] - numbers[-1] <= 1
            for at, number in zip(of, numbers, strict=True):
                assert saved[at * size : (at + 1) * size] == numbered(number, size)
        assert [pool.name for pool in store.pools() if pool.name.startswith(".save")] == []


def test_an_export_that_is_saved_is_neither_removed_nor_cut_off_nor_saved_twice(tmp_path: Path) -> None:
    with served(tmp_path) as (running, cli, store, address):
        store.create_export("disk", MIB)
        with opened(address, "disk") as client:
            client.write(0, numbered(1, 4096) * 3)
        target = Target(store, running.address)
        snapshot = target.ask(lambda link: snapshot_ops.begin(link, "disk"))
        assert "is being saved" in cli.fails("save", "export/disk", tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
        eventually(lambda: not next(one for one in store.exports() if one.name == "disk").clients)
        assert "is being saved" in cli.fails("export", "rm", "disk", "--yes")
        assert "being saved" in cli.fails("export", "resize", "disk", "512KiB")
        assert target.ask(lambda link: snapshot_ops.scan(link, snapshot, 0)) == ([0, 1, 2], 0)
        with pytest.raises(tmem.MismatchError, match="page 9999 was requested"):
            target.ask(lambda link: snapshot_ops.read(link, snapshot, [9999], 0))
        cli("export", "rm", "disk", "--force", "--yes")
        with pytest.raises(tmem.MismatchError, match="unknown snapshot"):
            target.ask(lambda link: snapshot_ops.read(link, snapshot, [0], 0))
        assert [pool.name for pool in store.pools()] == [".exports"]


def test_what_a_daemon_that_was_killed_kept_for_a_save_is_cleared_away(tmp_path: Path) -> None:
    with served(tmp_path) as (running, cli, store, address):
        store.create_export("disk", MIB)
        target = Target(store, running.address)
        with opened(address, "disk") as client:
            client.write(0, numbered(1, 4096))
            target.ask(lambda link: snapshot_ops.begin(link, "disk"))
            client.write(0, numbered(2, 4096))
        assert store.find_pool(".save/disk").stats()["pages"] == 1
        running.kill()
    with served(tmp_path) as (_, cli, store, address):
        assert sorted(pool.name for pool in store.pools()) == [".exports", "export/disk"]
        cli("save", "export/disk", tmp_path / "saved")
        assert image(tmp_path / "saved", MIB)[:4096] == numbered(2, 4096)


@pytest.mark.parametrize("flags", [(), ("--workers=2",)])
def test_nobody_changes_the_pages_of_an_export_that_is_open_or_saved(tmp_path: Path, flags: tuple[str, ...]) -> None:
    with served(tmp_path, *flags) as (running, cli, _, address), tmem.connect(running.addresses[-1]) as store:
        store.create_export("disk", MIB)
        pool, blocks = store.find_pool("export/disk"), numbered(1, 4096) + numbered(2, 4096)

        def refused(change: Callable[[], object]) -> None:
            with pytest.raises(tmem.MismatchError, match=r"export 'disk' is (in use by 1 client, who|being saved)"):
                change()

        def all_refused() -> None:
            refused(lambda: pool.put(0, {0: bytes(4096)}))
            refused(lambda: pool.flush(0, [0]))
            refused(lambda: pool.flush_object(0))
            refused(lambda: pool.get(0, [0], exclusive=True))
            assert pool.get(0, [0, 1]) == {0: blocks[:4096], 1: blocks[4096:]}

        with opened(address, "disk") as client:
            client.write(0, blocks)
            all_refused()
            store.compact()
            store.relinquish(1 << 40)
            assert "export" in cli.fails("pool", "rm", "export/disk", "--yes")
            assert client.read(0, 8192) == blocks
        eventually(lambda: not store.exports()[0].clients)
        target = Target(store, running.address)
        snapshot = target.ask(lambda link: snapshot_ops.begin(link, "disk"))
        all_refused()
        target.ask(lambda link: snapshot_ops.close(link, snapshot))
        assert pool.put(0, {0: blocks[4096:]})[0].stored
        assert pool.flush(0, [1]) == 1


def test_a_quota_below_what_is_held_loses_no_block(tmp_path: Path) -> None:
    with served(tmp_path) as (_, cli, store, address):
        store.create_export("disk", MIB)
        old = b"".join(numbered(number, 4096) for number in range(100))
        with opened(address, "disk") as client:
            client.write(0, old)
            cli("pool", "quota", "export/disk", "100KiB")
            for block in range(50):
                assert (
                    client.command(Cmd.WRITE, block * 4096, 4096, data=numbered(200 + block, 4096)).error == Err.NOSPC
                )
            assert client.read(0, len(old)) == old
            client.do(Cmd.TRIM, 0, 95 * 4096)
            client.write(0, numbered(7, 4096))
            assert client.read(95 * 4096, 5 * 4096) == old[95 * 4096 :]


def test_an_export_that_no_address_serves_is_saved_too(tmp_path: Path) -> None:
    with served(tmp_path) as (_, _, store, address):
        store.create_export("disk", MIB)
        with opened(address, "disk") as client:
            client.write(4096, numbered(1, 4096))
    with daemon(f"--arena={tmp_path}/arena", memory="256MiB") as running:
        said = Command(running.address).json("save", "export/disk", tmp_path / "saved")
        assert (said["pages"], said["paused"] is not None) == (1, True)
        assert image(tmp_path / "saved", MIB)[4096:8192] == numbered(1, 4096)


def test_where_memory_ends_the_save_fails_and_no_write_does(tmp_path: Path) -> None:
    with served(tmp_path, memory="24MiB") as (running, _, store, address):
        store.create_export("disk", 32 * MIB)
        target = Target(store, running.address)
        with opened(address, "disk") as client:
            for block in range(12 * MIB >> 12):
                client.write(block << 12, numbered(1, 4096))
            snapshot = target.ask(lambda link: snapshot_ops.begin(link, "disk"))
            for block in range(12 * MIB >> 12):
                client.write(block << 12, numbered(2, 4096))
            with pytest.raises(tmem.MismatchError, match="no memory to keep the blocks that were overwritten"):
                target.ask(lambda link: snapshot_ops.read(link, snapshot, [0], 0))
            with pytest.raises(tmem.MismatchError, match="no memory"):
                target.ask(lambda link: snapshot_ops.close(link, snapshot))


def test_of_many_writes_that_need_a_snapshots_memory_none_fails(tmp_path: Path) -> None:
    writers, noise = 6, [random.Random(seed).randbytes(4096) for seed in range(16)]
    with served(tmp_path, memory="64MiB") as (running, _, store, address), ExitStack() as stack:
        store.create_export("disk", 64 * MIB, multi_conn=True)
        clients = [stack.enter_context(opened(address, "disk")) for _ in range(writers)]
        for block in range(24 * MIB >> 12):
            clients[0].write(block << 12, noise[block % 16])
        Target(store, running.address).ask(lambda link: snapshot_ops.begin(link, "disk"))

        def write(nth: int) -> list[Err]:
            blocks = range(nth, 46 * MIB >> 12, writers)
            return [clients[nth].command(Cmd.WRITE, at << 12, 4096, data=noise[(at + 3) % 16]).error for at in blocks]

        with ThreadPoolExecutor(writers) as threads:
            assert {error for errors in threads.map(write, range(writers)) for error in errors} == {Err.OK}


def test_a_write_that_needs_a_snapshots_memory_waits_for_a_neighbour_and_does_not_fail(tmp_path: Path) -> None:
    arena = tmp_path / "arena"
    with served(tmp_path, memory="24MiB") as (running, _, store, address), tmem.connect(f"shm://{arena}"):
        store.create_export("disk", 32 * MIB)
        target = Target(store, running.address)
        with opened(address, "disk") as client:
            for block in range(8 * MIB >> 12):
                client.write(block << 12, numbered(1, 4096))
            snapshot = target.ask(lambda link: snapshot_ops.begin(link, "disk"))
            with admin_held(arena):
                for block in range(32 * MIB >> 12):
                    write = client.submit(Cmd.WRITE, block << 12, 4096, data=numbered(2, 4096))
                    client.read(0, 512)
                    if not client.is_answered(write):
                        break
                    assert client.answer(write).error == Err.OK
            assert client.answer(write).error == Err.OK
            assert client.read(block << 12, 4096) == numbered(2, 4096)
        with pytest.raises(tmem.MismatchError, match="a write needed the memory"):
            target.ask(lambda link: snapshot_ops.close(link, snapshot))


def test_what_a_snapshot_could_not_give_back_as_it_ended_keeps_no_later_one_out(tmp_path: Path) -> None:
    arena = tmp_path / "arena"
    store = EngineStore(Config(memory=16 * MIB, arena=str(arena)))
    entry = Catalogue(store).create(ExportSpec(name="disk", size=MIB))
    snapshots = Snapshots(store)
    for held in (True, False):
        number, _ = snapshots.begin(entry, None)
        set_lock_wait(0)
        with admin_held(arena) if held else nullcontext():
            snapshots.close(pb.CloseSnapshotRequest(id=number))
        set_lock_wait(None)
        assert (".save/disk" in [pool.name for pool in store.pools()]) == held
    store.close()


def test_a_snapshot_that_nobody_reads_ends_by_itself() -> None:
    async def scenario() -> None:
        store = EngineStore(Config(memory=16 * MIB))
        entry = Catalogue(store).create(ExportSpec(name="disk", size=MIB))
        snapshots = Snapshots(store, lease=0.05)
        number, _ = await asyncio.to_thread(snapshots.begin, entry, None)
        with pytest.raises(BusyError, match="is being saved"):
            snapshots.begin(entry, None)
        assert snapshots.scan(pb.ScanSnapshotRequest(id=number)).next == 0
        await snapshots.expire(number)
        with pytest.raises(SnapshotError, match="not used for"):
            snapshots.read(pb.ReadSnapshotRequest(id=number))
        assert sorted(pool.name for pool in store.pools()) == [".exports", "export/disk"]
        store.close()

    asyncio.run(scenario())
