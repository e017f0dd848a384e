"""Brings the block server in line with the catalogue: at the start, and after every change or attempt at one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tmemd.base.errors import TmemdError
from tmemd.base.logs import log

if TYPE_CHECKING:
    from tmemd.exports.catalogue import Catalogue
    from tmemd.store.api import BlockServer


def reconcile(catalogue: Catalogue, server: BlockServer) -> None:
    """Serve exactly the exports of the catalogue, as it describes them.

    A damaged export is left alone: its clients keep it, but it is not served anew. One that cannot be served does not
    affect the others.
    """
    entries = catalogue.entries()
    for name in server.status().keys() - {entry.name for entry in entries}:
        server.remove(name, force=True)
    for entry in entries:
        if entry.damaged:
            continue
        try:
            server.serve(entry.name, entry.block_export())
        except (TmemdError, ValueError) as error:
            log.error("export %s is not served as the catalogue has it: %s", entry.name, error)
