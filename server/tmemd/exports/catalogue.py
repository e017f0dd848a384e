"""The catalogue of exports: their names, sizes, rights and pools. It lives in the arena itself.

An export is a persistent pool, `export/NAME`, and a record: one page of the pool `.exports`, under an oid derived from
the name. The order of steps matters:

- create: the pool, its reserve, the record. Without a record there is no export.
- change: the new record, at the next index; then the old one is removed. The newest record counts, so a change that is
  refused or interrupted leaves the export as it was.
- remove: the pool, then the record. A record names its pool by id: once its pool is gone it is no longer an export.

`clean_up` removes what a process that died left behind: records without pools, and empty pools without records (a pool
that holds pages stays). Only one process at a time may use the catalogue.

A record that cannot be read, for example after a memory fault, damages only its own export, until a resize writes the
record anew or the export is removed. Its pool and pages stay.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tmem_proto.limits import PAGE_SIZES
from tmemd.base.errors import (
    DamagedExportError,
    ExhaustedError,
    ExportExistsError,
    UnknownExportError,
    UnknownPoolError,
)
from tmemd.base.logs import log
from tmemd.config.clients import check_client
from tmemd.store.api import STORED, Batch, BlockExport, PoolSettings
from tmemd.store.names import CATALOGUE, EXPORTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tmemd.store.api import Store, StorePool

PAGE = 4096
OID = bytes(24)
"""The object of an export's pages, in its pool."""
MOST_BYTES = PAGE << 32
LONGEST_NAME = 64 - len(EXPORTS)
MOST_ALLOWED = 24
"""Most clients that an export may name: they fit into its record, however long their names are."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SCAN_PAGES = 4096
_NAMELESS = "record:"
"""Prefix of the oid that stands for the name of an export whose name is unknown. Export names have no colon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSpec:
    """An export to create. An invalid one is a `ValueError`."""

    name: str
    size: int
    reserve: int = 0
    codec: str = "lz4"
    multi_conn: bool = False
    allow: tuple[str, ...] | None = None
    """Clients that may open it; None lets anybody in."""
    block_size: int = PAGE
    """The page size of its pool, which stores it."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_size(self.size)
        check_allowed(self.allow or ())
        check_block_size(self.block_size)


@dataclass(frozen=True, slots=True)
class Entry:
    """An export. `pool` is None if it is gone; `at` is the index of its record; `allow` None lets anybody in."""

    name: str
    size: int
    draining: bool
    multi_conn: bool
    allow: tuple[str, ...] | None
    pool_id: int
    pool: StorePool | None
    at: int
    damaged: str = ""
    """Why its record cannot be read. It then has no size, nobody may open it, and without a pool its name is an oid."""

    @property
    def oid(self) -> bytes:
        """The oid of its record."""
        return bytes.fromhex(self.name.removeprefix(_NAMELESS)) if self.name.startswith(_NAMELESS) else _oid(self.name)

    def block_export(self) -> BlockExport:
        """The export as the block server is to serve it."""
        assert self.pool is not None
        return BlockExport(self.pool, OID, self.size, self.draining, self.multi_conn, self.allow)

    def must_be_sound(self) -> None:
        if self.damaged:
            raise DamagedExportError(self.name, self.damaged)


def check_name(name: str) -> None:
    """Raise ValueError for an invalid export name."""
    if len(name) > LONGEST_NAME or not _NAME.fullmatch(name):
        raise ValueError(
            f"export name {name!r} is not 1 to {LONGEST_NAME} letters, digits, '.', '_' and '-', the first of them a "
            "letter or digit"
        )


def check_size(size: int) -> None:
    """Raise ValueError for an invalid export size."""
    if not PAGE <= size <= MOST_BYTES or size % PAGE:
        raise ValueError(
            f"an export's size is {size} bytes: it must be a multiple of {PAGE}, from {PAGE} to {MOST_BYTES}"
        )


def check_allowed(allow: tuple[str, ...]) -> None:
    """Raise ValueError for an invalid list of clients."""
    for name in allow:
        check_client(name)
    if len(allow) > MOST_ALLOWED:
        raise ValueError(f"an export names at most {MOST_ALLOWED} clients, not {len(allow)}")


def check_block_size(size: int) -> None:
    """Raise ValueError for an invalid block size."""
    if size not in PAGE_SIZES:
        sizes = ", ".join(map(str, PAGE_SIZES[:-1]))
        raise ValueError(f"an export's block size is {size} bytes: it must be {sizes} or {PAGE_SIZES[-1]}")


class Catalogue:
    """All exports of a store. Its methods may block; call them in a thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._told: set[tuple[bytes, int]] = set()
        """Damaged records that have been logged."""

    def entries(self) -> list[Entry]:
        """All exports, by name."""
        return sorted((one for one in self._newest() if one.pool or one.damaged), key=lambda entry: entry.name)

    def find(self, name: str) -> Entry:
        """The export of a name."""
        for entry in self.entries():
            if entry.name == name:
                return entry
        raise UnknownExportError(name)

    def create(self, spec: ExportSpec) -> Entry:
        """A new export, empty."""
        if any(entry.name == spec.name for entry in self.entries()):
            raise ExportExistsError(spec.name)
        self.clean_up()
        settings = PoolSettings(kind="persistent", codec=spec.codec, page_size=spec.block_size)
        pool = self._store.create_pool(EXPORTS + spec.name, settings)
        entry = Entry(spec.name, spec.size, False, spec.multi_conn, spec.allow, pool.id, pool, 0)
        try:
            if spec.reserve:
                pool.set_reserve(spec.reserve)
            self._write(entry)
        except BaseException:
            pool.destroy()
            raise
        return entry

    def change(self, entry: Entry, **changed: Any) -> Entry:
        """Change the size, draining or rights of an export."""
        newer = replace(entry, at=entry.at + 1, damaged="", **changed)
        self._write(newer)
        self._records().flush(entry.oid, [entry.at])
        return newer

    def remove(self, name: str) -> int:
        """Remove an export and its pages; returns their number."""
        entry = self.find(name)
        dropped = 0 if entry.pool is None else entry.pool.destroy()
        self._records().flush_object(entry.oid)
        return dropped

    def clean_up(self) -> None:
        """Remove what an interrupted change left behind."""
        kept = set()
        for entry in self._newest():
            if entry.damaged:
                kept.add(entry.pool_id)
            elif entry.pool is None:
                log.info("export %s was being removed when its daemon died: removing its record", entry.name)
                self._records().flush_object(entry.oid)
            else:
                kept.add(entry.pool_id)
                self._records().flush(entry.oid, range(entry.at))
        for pool in self._store.pools():
            if pool.name.startswith(EXPORTS) and pool.id not in kept:
                self._clear(pool)

    def _clear(self, pool: StorePool) -> None:
        with suppress(UnknownPoolError):
            if pool.stats()["pages"]:
                log.warning("pool %s holds pages but belongs to no export: leaving it alone", pool.name)
            else:
                log.info(
                    "export %s was being created when its daemon died: removing its pool",
                    pool.name.removeprefix(EXPORTS),
                )
                pool.destroy()

    def _records(self) -> StorePool:
        return self._store.open_pool(CATALOGUE, PoolSettings(kind="persistent"))

    def _write(self, entry: Entry) -> None:
        record = {
            "name": entry.name,
            "size": entry.size,
            "draining": entry.draining,
            "multi_conn": entry.multi_conn,
            "allow": entry.allow,
            "pool": entry.pool_id,
        }
        page = json.dumps(record, ensure_ascii=False).encode().ljust(PAGE, b"\0")
        (outcome,) = self._records().put(Batch(_oid(entry.name), [entry.at], None, page))
        if outcome not in STORED:
            raise ExhaustedError(f"the store has no room for the record of export {entry.name!r}")

    def _newest(self) -> Iterator[Entry]:
        """The newest record of each export."""
        try:
            records = self._store.find_pool(CATALOGUE)
        except UnknownPoolError:
            return
        indices: dict[bytes, int] = {}
        cursor = b""
        while True:
            scanned, cursor = records.scan(cursor, _SCAN_PAGES)
            for oid, found, _ in scanned:
                indices[oid] = max(indices.get(oid, 0), *found)
            if not cursor:
                break
        for oid, at in indices.items():
            try:
                yield self._entry(_record(records.fetch(oid, [at], False).pages, oid), at)
            except _BadRecordError as error:
                yield self._damaged(oid, at, str(error))

    def _entry(self, record: dict[str, Any], at: int) -> Entry:
        pool: StorePool | None = None
        with suppress(UnknownPoolError):
            pool = self._store.find_pool(EXPORTS + record["name"])
        if pool is not None and pool.id != record["pool"]:
            pool = None
        allow = None if (found := record["allow"]) is None else tuple(found)
        flags = record["draining"], record["multi_conn"]
        return Entry(record["name"], record["size"], *flags, allow, record["pool"], pool, at)

    def _damaged(self, oid: bytes, at: int, why: str) -> Entry:
        pools = [pool for pool in self._store.pools() if pool.name.startswith(EXPORTS)]
        its = next((pool for pool in pools if _oid(pool.name.removeprefix(EXPORTS)) == oid), None)
        name = _NAMELESS + oid.hex() if its is None else its.name.removeprefix(EXPORTS)
        if (oid, at) not in self._told:
            self._told.add((oid, at))
            log.error("the record of export %s cannot be read: %s; the export is not served", name, why)
        return Entry(name, 0, True, False, (), 0 if its is None else its.id, its, at, why)


class _BadRecordError(ValueError):
    """Why a record cannot be read."""


def _record(page: bytes, oid: bytes) -> dict[str, Any]:
    """Parse and validate a record."""
    if not page:
        raise _BadRecordError("it fails its checksum")
    try:
        said = {"multi_conn": False, "allow": None, **json.loads(page.rstrip(b"\0"))}
        check_name(said["name"])
        check_size(said["size"])
        check_allowed(() if said["allow"] is None else said["allow"])
        kinds = {"draining": bool, "multi_conn": bool, "pool": int, "allow": list | None}
        wrong = [key for key, kind in kinds.items() if not isinstance(said[key], kind)]
        if wrong or isinstance(said["size"], bool) or _oid(said["name"]) != oid:
            raise _BadRecordError(f"its {', '.join(wrong) or 'name'} cannot be so")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise _BadRecordError(f"it makes no sense ({error})") from error
    return said


def _oid(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:24]
