"""Saves an export: its pages as they were at one instant, while its clients go on.

The server keeps what changes until it was read. Pages are read in their order, several calls at once; what was written
to the file is no more kept.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import tmem
from tmem._protocol import snapshot_ops
from tmem._protocol.session import batches
from tmem.cli.archive.exports import PREFIX
from tmem.cli.archive.format import BATCH_BYTES
from tmem.cli.base.prefetch import prefetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tmem._protocol.messages import Got
    from tmem._protocol.snapshot_ops import Snapshot
    from tmem.cli.archive.format import Writer
    from tmem.cli.base.target import Target

_OID = bytes(24)
_BATCH_PAGES = 256


@contextmanager
def opened(target: Target, pool: str) -> Iterator[Snapshot | None]:
    """A snapshot of the export that a pool belongs to. None for other pools, and for servers without snapshots.

    It must not have ended before the block does.
    """
    snapshot = _begin(target, pool)
    if snapshot is None:
        yield None
        return
    try:
        yield snapshot
    except BaseException:
        with suppress(tmem.TmemError):
            target.ask(lambda server: snapshot_ops.close(server, snapshot))
        raise
    target.ask(lambda server: snapshot_ops.close(server, snapshot))


def _begin(target: Target, pool: str) -> Snapshot | None:
    if not (pool.startswith(PREFIX) and target.served):
        return None
    try:
        return target.ask(lambda server: snapshot_ops.begin(server, pool.removeprefix(PREFIX)))
    except tmem.UnknownPoolError:
        return None  # pages that a daemon found without their export
    except tmem.TmemError as error:
        if type(error) is tmem.TmemError:
            return None  # a server that is older
        raise


def write(target: Target, snapshot: Snapshot, writer: Writer, progress: Callable[[int], None]) -> tuple[int, int]:
    """Write all pages of a snapshot; how many were written, and how many were damaged and left out."""
    pages = corrupt = done = 0

    def fetch(indices: Sequence[int]) -> Got:
        return target.ask(lambda server: snapshot_ops.read(server, snapshot, indices, done))

    calls = _calls(target, snapshot)
    for indices, got in prefetch(calls, fetch):
        if got.pages:
            writer.pages(_OID, {indices[at]: page for at, page in got.pages})
        pages += len(got.pages)
        corrupt += len(got.corrupt)
        done = indices[-1] + 1
        progress(len(indices))
    return pages, corrupt


def _calls(target: Target, snapshot: Snapshot) -> Iterator[Sequence[int]]:
    def scan(first: int) -> tuple[Sequence[int], int]:
        return target.ask(lambda server: snapshot_ops.scan(server, snapshot, first))

    following = 0
    while True:
        found, following = scan(following)
        yield from batches(list(found), min(_BATCH_PAGES, BATCH_BYTES // snapshot.page_size))
        if not following:
            return
