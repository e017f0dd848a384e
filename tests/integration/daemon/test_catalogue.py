"""The catalogue of exports: cut short at any step, and with damaged records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

import tmem
from tests.integration.engine.test_arena_files import contents, patch
from tests.lib.daemon import Client, daemon
from tests.lib.support import PATIENCE
from tmem_proto.v1 import admin_pb2 as pb
from tmem_proto.v1 import tmem_pb2
from tmemd.base.errors import ExhaustedError, ExportExistsError
from tmemd.config.settings import Config
from tmemd.exports.catalogue import OID, Catalogue, ExportSpec
from tmemd.store.api import Batch
from tmemd.store.engine_store import EngineStore
from tmemd.store.names import CATALOGUE

MIB = 1 << 20
STEPS = {"create_pool", "open_pool", "put", "flush", "flush_object", "destroy", "set_reserve"}


class CutShort(BaseException):
    """The process is no more."""


class Mortal:
    """A store, or a pool of it, whose process dies before a step: nothing more is done, clean-up neither."""

    def __init__(self, thing: Any, left: list[int]) -> None:
        self._thing = thing
        self._left = left

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            if name in STEPS:
                if not self._left[0]:
                    raise CutShort
                self._left[0] -= 1
            answer = found(*arguments)
            if name in ("create_pool", "open_pool", "find_pool"):
                return Mortal(answer, self._left)
            return [Mortal(pool, self._left) for pool in answer] if name == "pools" else answer

        return call


@pytest.fixture
def store() -> Iterator[EngineStore]:
    opened = EngineStore(Config(memory=32 * MIB, shards=1))
    yield opened
    assert opened.check() == []
    opened.close()


def cut_short(store: EngineStore, work: Callable[[Catalogue], object], prepare: Callable[[Catalogue], object]) -> int:
    """Do the work as often as it has steps, dying before each; how many they are."""
    for steps in range(100):
        prepare(Catalogue(store))
        try:
            work(Catalogue(Mortal(store, [steps])))
        except CutShort:
            restarted = Catalogue(store)
            restarted.clean_up()
            assert_whole(store, restarted)
        else:
            return steps
    raise AssertionError("it has no end")


def assert_whole(store: EngineStore, catalogue: Catalogue) -> None:
    """Every export has its pool and one record, and there is nothing else."""
    entries = catalogue.entries()
    pools = {pool.name: pool for pool in store.pools()}
    records = pools.pop(CATALOGUE, None)
    assert sorted(pools) == sorted(f"export/{entry.name}" for entry in entries)
    assert (records.stats()["pages"] if records else 0) == len(entries)
    for entry in entries:
        assert entry.pool is not None
        assert entry.pool.reserve() == (MIB if entry.name == "new" else 0)


def test_a_creation_cut_short_leaves_an_export_or_nothing(store: EngineStore) -> None:
    seen = set()

    def prepare(catalogue: Catalogue) -> None:
        found = {entry.name for entry in catalogue.entries()}
        seen.add("new" in found)
        for name in found:
            catalogue.remove(name)

    spec = ExportSpec(name="new", size=4 * MIB, reserve=MIB)
    assert cut_short(store, lambda catalogue: catalogue.create(spec), prepare) >= 4
    assert Catalogue(store).find("new").size == 4 * MIB
    assert seen == {False}, "the record is the last step: cut short before it there is nothing"


def test_a_removal_cut_short_leaves_an_export_or_nothing(store: EngineStore) -> None:
    def prepare(catalogue: Catalogue) -> None:
        if not catalogue.entries():
            entry = catalogue.create(ExportSpec(name="new", size=4 * MIB, reserve=MIB))
            assert entry.pool is not None
            entry.pool.put(Batch(OID, [1], None, b"\7" * 4096))

    assert cut_short(store, lambda catalogue: catalogue.remove("new"), prepare) >= 2
    assert Catalogue(store).entries() == []


def test_a_change_cut_short_leaves_the_old_or_the_new(store: EngineStore) -> None:
    sizes = set()

    def prepare(catalogue: Catalogue) -> None:
        if not catalogue.entries():
            catalogue.create(ExportSpec(name="old", size=4 * MIB))
        entry = catalogue.find("old")
        sizes.add(entry.size)
        if entry.size != 4 * MIB:
            catalogue.change(entry, size=4 * MIB)

    def change(catalogue: Catalogue) -> None:
        catalogue.change(catalogue.find("old"), size=8 * MIB)

    assert cut_short(store, change, prepare) >= 2
    assert Catalogue(store).find("old").size == 8 * MIB
    assert sizes == {4 * MIB, 8 * MIB}


def test_a_pool_with_pages_that_belongs_to_no_export_is_left_alone(store: EngineStore) -> None:
    catalogue = Catalogue(store)
    entry = catalogue.create(ExportSpec(name="old", size=4 * MIB))
    assert entry.pool is not None
    entry.pool.put(Batch(OID, [1], None, b"\7" * 4096))
    (records,) = (pool for pool in store.pools() if pool.name == CATALOGUE)
    records.destroy()
    catalogue.clean_up()
    assert catalogue.entries() == []
    assert [pool.name for pool in store.pools()] == ["export/old"]


def test_a_change_that_is_refused_leaves_the_export_as_it_was(store: EngineStore) -> None:
    catalogue = Catalogue(store)
    entry = catalogue.create(ExportSpec(name="old", size=4 * MIB))
    store.find_pool(CATALOGUE).freeze()
    with pytest.raises(ExhaustedError, match="no room for the record of export 'old'"):
        catalogue.change(entry, size=8 * MIB)
    assert catalogue.find("old").size == 4 * MIB


def spoil(store: EngineStore, name: str, page: bytes) -> None:
    """Put a page in the place of an export's record."""
    entry = Catalogue(store).find(name)
    store.find_pool(CATALOGUE).put(Batch(entry.oid, [entry.at], None, page.ljust(4096, b"\0")))


def record(**changed: object) -> bytes:
    said = {"name": "bad", "size": 4 * MIB, "draining": False, "multi_conn": False, "allow": None, "pool": 1}
    return json.dumps({**said, **changed}).encode()


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\xff\xfe",
        b"[" * 4096,
        b"7",
        b"[]",
        b"{}",
        b'{"name": "bad", "size": 4194304, "draining": false',
        record(name="old"),
        record(name=["bad"]),
        record(size="4MiB"),
        record(size=-4096),
        record(size=True),
        record(size=1 << 70),
        record(draining=1),
        record(pool="1"),
        record(allow="me"),
        record(allow=[7]),
    ],
)
def test_a_record_that_makes_no_sense_costs_its_export_alone(
    store: EngineStore, page: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = Catalogue(store)
    catalogue.create(ExportSpec(name="old", size=8 * MIB))
    catalogue.create(ExportSpec(name="bad", size=4 * MIB))
    spoil(store, "bad", page)
    for _ in range(3):
        catalogue.clean_up()
        bad, old = catalogue.entries()
    assert (old.name, old.size, old.damaged) == ("old", 8 * MIB, "")
    assert (bad.name, bad.allow, bool(bad.damaged)) == ("bad", (), True)
    assert [each.levelname for each in caplog.records] == ["ERROR"]
    assert "the record of export bad cannot be read" in caplog.text
    with pytest.raises(ExportExistsError):
        catalogue.create(ExportSpec(name="bad", size=4 * MIB))
    catalogue.change(bad, size=4 * MIB)
    renewed = catalogue.find("bad")
    assert (renewed.size, renewed.damaged, renewed.pool_id) == (4 * MIB, "", bad.pool_id)
    spoil(store, "bad", page)
    catalogue.remove("bad")
    assert [entry.name for entry in catalogue.entries()] == ["old"]


def test_a_page_that_is_no_record_at_all_can_be_removed(store: EngineStore) -> None:
    catalogue = Catalogue(store)
    catalogue.create(ExportSpec(name="old", size=8 * MIB))
    store.find_pool(CATALOGUE).put(Batch(b"\7" * 24, [9], None, b"\1" * 4096))
    old, stray = catalogue.entries()
    assert (old.name, stray.name, stray.pool) == ("old", f"record:{'07' * 24}", None)
    assert catalogue.remove(stray.name) == 0
    assert [entry.name for entry in catalogue.entries()] == ["old"]


def test_a_daemon_serves_all_exports_but_the_damaged_one(arena: Path) -> None:
    with closing(EngineStore(Config(memory=32 * MIB, shards=1, arena=str(arena)))) as store:
        catalogue = Catalogue(store)
        for name in ("bad", "good"):
            entry = catalogue.create(ExportSpec(name=name, size=4 * MIB))
            assert entry.pool is not None
            entry.pool.put(Batch(OID, [1], None, b"\7" * 4096))
    ((at, chunk),) = ((at, chunk) for at, chunk in contents(arena).items() if b'"bad"' in chunk)
    patch(arena, at + chunk.index(b'"bad"'), b"!")
    with daemon(f"--arena={arena}", f"--nbd=unix:{arena}.sock", memory="32MiB") as running:
        with closing(Client(running.address)) as client:
            for _ in range(3):
                bad, good = client.admin.ListExports(pb.ListExportsRequest()).exports
            assert (bad.name, bad.damaged, bad.pages) == ("bad", "it fails its checksum", 1)
            assert (good.name, good.damaged, good.pages) == ("good", "", 1)
            with pytest.raises(grpc.RpcError, match="cannot be read: it fails its checksum; resize it, or remove it"):
                client.admin.AllowExport(pb.AllowExportRequest(name="bad", anyone=True))
            client.session = client.tmem.OpenPool(tmem_pb2.OpenPoolRequest(name=CATALOGUE)).session
            for call in (
                lambda: client.put({1: bytes(4096)}),
                lambda: client.tmem.Get(client.get_request([0], exclusive=True)),
                lambda: client.tmem.Flush(tmem_pb2.FlushRequest(session=client.session, oid=OID, indices=[0])),
                lambda: client.tmem.FlushObject(tmem_pb2.FlushObjectRequest(session=client.session, oid=OID)),
                lambda: client.open(CATALOGUE),
                lambda: client.open(".mine"),
                lambda: client.admin.Freeze(pb.FreezeRequest(pool=CATALOGUE)),
                lambda: client.admin.SetQuota(pb.SetQuotaRequest(pool=CATALOGUE, quota=4096)),
                lambda: client.admin.DestroyPool(pb.DestroyPoolRequest(name=CATALOGUE)),
            ):
                with pytest.raises(grpc.RpcError, match="belongs to the daemon: nobody else may change it"):
                    call()
            assert client.admin.GetPool(pb.GetPoolRequest(name=CATALOGUE)).pool.stats.values["pages"] == 2
            assert client.admin.Scan(pb.ScanRequest(pool=CATALOGUE)).objects
            renewed = client.admin.ResizeExport(pb.ResizeExportRequest(name="bad", size=8 * MIB)).export
            assert (renewed.size, renewed.damaged, renewed.pages) == (8 * MIB, "", 1)
            assert list(renewed.allowed.clients) == []
            with (
                tmem.connect(f"shm://{arena}") as attached,
                pytest.raises(ValueError, match="are reserved for the server"),
            ):
                attached.find_pool(CATALOGUE)
        running.process.terminate()
        _, said = running.process.communicate(timeout=PATIENCE)
    assert running.process.returncode == 0
    assert said.count("the record of export bad cannot be read") == 1
