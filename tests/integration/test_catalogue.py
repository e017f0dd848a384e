"""The catalogue of exports, cut short before each of its steps: an export is there, or nothing of it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tmemd.catalogue import CATALOGUE, OID, Catalogue
from tmemd.config import Config
from tmemd.errors import ExhaustedError
from tmemd.store import EngineStore
from tmemd.surface import Batch

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
            restarted.mend()
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

    assert cut_short(store, lambda catalogue: catalogue.create("new", 4 * MIB, MIB, "lz4", False), prepare) >= 4
    assert Catalogue(store).find("new").size == 4 * MIB
    assert seen == {False}, "the record is the last step: cut short before it there is nothing"


def test_a_removal_cut_short_leaves_an_export_or_nothing(store: EngineStore) -> None:
    def prepare(catalogue: Catalogue) -> None:
        if not catalogue.entries():
            entry = catalogue.create("new", 4 * MIB, MIB, "lz4", False)
            assert entry.pool is not None
            entry.pool.put(Batch(OID, [1], None, b"\7" * 4096))

    assert cut_short(store, lambda catalogue: catalogue.remove("new"), prepare) >= 2
    assert Catalogue(store).entries() == []


def test_a_change_cut_short_leaves_the_old_or_the_new(store: EngineStore) -> None:
    sizes = set()

    def prepare(catalogue: Catalogue) -> None:
        if not catalogue.entries():
            catalogue.create("old", 4 * MIB, 0, "lz4", False)
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
    entry = catalogue.create("old", 4 * MIB, 0, "lz4", False)
    assert entry.pool is not None
    entry.pool.put(Batch(OID, [1], None, b"\7" * 4096))
    (records,) = (pool for pool in store.pools() if pool.name == CATALOGUE)
    records.destroy()
    catalogue.mend()
    assert catalogue.entries() == []
    assert [pool.name for pool in store.pools()] == ["export/old"]


def test_a_change_that_is_refused_leaves_the_export_as_it_was(store: EngineStore) -> None:
    catalogue = Catalogue(store)
    entry = catalogue.create("old", 4 * MIB, 0, "lz4", False)
    store.find_pool(CATALOGUE).freeze()
    with pytest.raises(ExhaustedError, match="no room for the record of export 'old'"):
        catalogue.change(entry, size=8 * MIB)
    assert catalogue.find("old").size == 4 * MIB
