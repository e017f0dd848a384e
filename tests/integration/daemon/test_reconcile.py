"""The block server follows the catalogue, whatever becomes of a change."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tmem_proto.v1 import admin_pb2 as pb
from tmemd.base.errors import UnavailableError
from tmemd.config.settings import Config
from tmemd.exports.catalogue import Catalogue, ExportSpec
from tmemd.exports.manager import ExportManager
from tmemd.exports.reconcile import reconcile
from tmemd.store.api import Batch
from tmemd.store.engine_store import EngineStore
from tmemd.store.names import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tmemd.store.api import BlockServer

MIB = 1 << 20


@pytest.fixture
def store() -> Iterator[EngineStore]:
    opened = EngineStore(Config(memory=32 * MIB, shards=1))
    yield opened
    opened.close()


@pytest.fixture
def server(store: EngineStore) -> Iterator[BlockServer]:
    started = store.block_server([], 0, None, None)
    yield started
    started.stop(0)


def served(server: BlockServer | ExportManager) -> dict[str, tuple[int, bool]]:
    return {name: (each.size, each.draining) for name, each in server.status().items()}


def test_exports_come_change_and_go(store: EngineStore, server: BlockServer) -> None:
    catalogue = Catalogue(store)
    catalogue.create(ExportSpec(name="kept", size=MIB))
    catalogue.create(ExportSpec(name="gone", size=MIB))
    reconcile(catalogue, server)
    assert served(server) == {"gone": (MIB, False), "kept": (MIB, False)}
    catalogue.change(catalogue.find("kept"), size=2 * MIB, draining=True, allow=("guest",))
    catalogue.remove("gone")
    for _ in range(2):
        reconcile(catalogue, server)
        assert served(server) == {"kept": (2 * MIB, True)}


def test_one_that_cannot_be_served_costs_the_others_nothing(
    store: EngineStore, server: BlockServer, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = Catalogue(store)
    large = catalogue.create(ExportSpec(name="a", size=2 * MIB))
    catalogue.create(ExportSpec(name="b", size=MIB))
    reconcile(catalogue, server)
    assert large.pool is not None
    catalogue.change(large, size=MIB)
    large.pool.freeze()
    catalogue.change(catalogue.find("b"), size=2 * MIB)
    reconcile(catalogue, server)
    assert served(server) == {"a": (2 * MIB, False), "b": (2 * MIB, False)}
    assert "export a is not served as the catalogue has it: " in caplog.text


def test_a_damaged_one_is_left_to_those_who_have_it_open_and_not_served_anew(
    store: EngineStore, server: BlockServer, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = Catalogue(store)
    entry = catalogue.create(ExportSpec(name="disk", size=MIB))
    reconcile(catalogue, server)
    store.find_pool(CATALOGUE).put(Batch(entry.oid, [entry.at], None, b"{".ljust(4096)))
    reconcile(catalogue, server)
    assert served(server) == {"disk": (MIB, False)}
    other = store.block_server([], 0, None, None)
    reconcile(catalogue, other)
    assert served(other) == {}
    other.stop(0)
    assert "is not served as the catalogue has it" not in caplog.text


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("RemoveExport", pb.RemoveExportRequest(name="disk")),
        ("ResizeExport", pb.ResizeExportRequest(name="disk", size=MIB)),
        ("DrainExport", pb.DrainExportRequest(name="disk")),
    ],
)
def test_a_change_that_fails_leaves_the_export_served_as_it_was(
    store: EngineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, request_: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UnavailableError("a lock is held")

    async def scenario() -> None:
        exports = ExportManager(store)
        await exports.start([f"unix:{tmp_path}/sock"], 0)
        await exports.answer("CreateExport", pb.CreateExportRequest(name="disk", size=2 * MIB).SerializeToString())
        monkeypatch.setattr(Catalogue, "change", fail)
        monkeypatch.setattr(Catalogue, "remove", fail)
        with pytest.raises(UnavailableError):
            await exports.answer(method, request_.SerializeToString())
        assert served(exports) == {"disk": (2 * MIB, False)}
        exports.close()

    asyncio.run(scenario())
