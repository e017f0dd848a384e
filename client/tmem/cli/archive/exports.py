"""Exports in saved files: what a header tells of one, and an export that lets nobody in while it is restored.

An export is held closed by draining it, which outlives this process: one that a restore has left half done lets no
client in until somebody decides. A new one is made with rights of nobody, so that there is no moment before that.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tmem
from tmem._model.settings import ExportSpec
from tmem._protocol import export_ops
from tmem.cli.archive.format import PagesFileError
from tmem.cli.base import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tmem._protocol.export_ops import Export
    from tmem.cli.archive.format import Reader
    from tmem.cli.base.target import Target

PREFIX = "export/"
"""Prefix of the names of exports' pools."""


@dataclass(frozen=True, slots=True)
class Description:
    """An export as described in a header, besides the settings of its pool."""

    size: int
    reserve: int
    multi_conn: bool
    allowed: tuple[str, ...] | None
    """None: anyone who can reach the server."""


def described(target: Target, pool: str) -> dict[str, Any] | None:
    """The header's description of the export that a pool belongs to; None for other pools, and without a server."""
    if not (pool.startswith(PREFIX) and target.served):
        return None
    found = find(target, pool.removeprefix(PREFIX))
    if found is None or found.damaged:
        return None
    return {name: getattr(found, name) for name in Description.__slots__}


def find(target: Target, name: str) -> Export | None:
    """The export of that name, if there is one."""
    return next((one for one in target.ask(export_ops.exports) if one.name == name), None)


@contextmanager
def restored(
    target: Target, reader: Reader, name: str, merge: bool, remark: Callable[[str], None]
) -> Iterator[tuple[tmem.Pool, bool]]:
    """The pool of the export to restore to, and whether it is new. Admits no clients until the block succeeds."""
    if not target.served:
        raise tmem.MismatchError(
            f"{target.address} is a local arena: only a server can restore an export (--server HOST:PORT), "
            "but its pages can go to a pool (--pool NAME)"
        )
    if reader.foreign:
        raise PagesFileError("the file has pages that cannot be an export's: restore them to a pool with --pool NAME")
    wanted, found = _description(reader), find(target, name)
    made = found is None
    held_back = found is not None and found.draining
    if found is None:
        _make(target, reader, name, wanted)
    else:
        _must_fit(found, reader, wanted, merge)
        if target.pool(PREFIX + name).frozen:
            raise tmem.MismatchError(
                f"export {name!r} is frozen, so nothing was written: thaw it with `tmem pool thaw {PREFIX}{name}`"
            )
        _close(target, found)
    try:
        yield target.store.find_pool(PREFIX + name), made
    except BaseException:
        remark(
            f"export {name!r} may be partly restored and admits no clients: restore it again with --merge, or remove "
            f"it (tmem export rm {name}), or admit clients as it is (tmem export drain {name} --undo)"
        )
        raise
    if made and wanted is not None and wanted.allowed is None:
        remark(
            f"everyone who can reach the server may open export {name!r}, as when it was saved: "
            f"`tmem export allow {name} IDENTITY` restricts that"
        )
    if held_back:
        remark(f"export {name!r} still admits no clients: `tmem export drain {name} --undo` changes that")
    else:
        target.ask(lambda server: export_ops.drain(server, name, True))


def _description(reader: Reader) -> Description | None:
    saved = reader.header.get("export")
    if saved is None:
        return None
    try:
        allowed = saved["allowed"]
        found = Description(
            size=saved["size"],
            reserve=saved["reserve"],
            multi_conn=saved["multi_conn"],
            allowed=None if allowed is None else tuple(export_ops.names(allowed)),
        )
        if not (isinstance(found.size, int) and isinstance(found.reserve, int) and isinstance(found.multi_conn, bool)):
            raise TypeError
    except (KeyError, TypeError):
        raise PagesFileError("the header does not describe an export") from None
    if reader.furthest * reader.page_size >= found.size:
        raise PagesFileError(f"the file has pages beyond the end of the export, {_exact(found.size)}")
    return found


def _make(target: Target, reader: Reader, name: str, wanted: Description | None) -> None:
    """Create the export that the file describes; nobody may open it yet."""
    settings = reader.header["settings"]
    if wanted is None:
        raise tmem.MismatchError(
            f"there is no export {name!r}, and the file says neither its size nor who may open it: create it with "
            f"`tmem export create {name} --size SIZE --codec {settings.get('codec', 'lz4')} --block-size "
            f"{reader.page_size}` (its pages reach {_exact((reader.furthest + 1) * reader.page_size)}), then restore "
            "again"
        )
    nobody: tuple[str, ...] = ()
    spec = ExportSpec(
        name=name,
        size=wanted.size,
        reserve=wanted.reserve,
        codec=settings["codec"],
        multi_conn=wanted.multi_conn,
        allow=nobody,
        block_size=reader.page_size,
    )
    target.ask(lambda server: export_ops.create(server, spec))
    target.ask(lambda server: export_ops.drain(server, name, False))
    if wanted.allowed is None:
        target.ask(lambda server: export_ops.allow(server, name, [], False, True))
    elif wanted.allowed:
        target.ask(lambda server: export_ops.allow(server, name, wanted.allowed or (), False, False))
    if settings.get("quota"):
        target.store.find_pool(PREFIX + name).quota = settings["quota"]


def _must_fit(found: Export, reader: Reader, wanted: Description | None, merge: bool) -> None:
    """Raise if an export cannot take the file's contents."""
    if found.block_size != reader.page_size:
        raise tmem.MismatchError(
            f"export {found.name!r} has blocks of {found.block_size} bytes, the saved one of {reader.page_size}: "
            "restore it under another name with --as NAME"
        )
    size = wanted.size if wanted else (reader.furthest + 1) * reader.page_size
    if found.size < size and (wanted or found.size <= reader.furthest * reader.page_size):
        raise tmem.MismatchError(
            f"export {found.name!r} is {_exact(found.size)}, the saved one {_exact(size)}: nothing was written; "
            f"use `tmem export resize {found.name} {size}`, or restore it under another name with --as NAME"
        )
    if found.pages and not merge:
        raise tmem.MismatchError(
            f"export {found.name!r} holds {text.quantity(found.pages, 'block')}: restore it under another name with "
            "--as NAME, or overwrite its blocks with --merge"
        )


def _close(target: Target, found: Export) -> None:
    """Admit no clients; raise if one is connected."""
    now = target.ask(lambda server: export_ops.drain(server, found.name, False))
    if not now.clients:
        return
    if not found.draining:
        target.ask(lambda server: export_ops.drain(server, found.name, True))
    who = ", ".join(text.printable(one.identity or one.address) for one in now.clients)
    raise tmem.MismatchError(
        f"export {found.name!r} is in use by {who}, so nothing was written: disconnect its clients, or "
        "restore it under another name with --as NAME"
    )


def _exact(size: int) -> str:
    return f"{text.size(size)} ({size:,} bytes)"
