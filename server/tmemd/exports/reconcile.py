"""Brings the block server in line with the catalogue: at the start, and after every change or attempt at one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tmemd.base.errors import TmemdError
from tmemd.base.logs import log

if TYPE_CHECKING:
    from tmemd.exports.catalogue import Catalogue
    from tmemd.store.api import BlockServer


def reconcile(catalogue: Catalogue, server: BlockServer) -> None:
    """Serve each export as the catalogue has it, and none that it has not.

    A damaged one is left as it is: it is not served anew, and clients that have it open go on. One that cannot be
    served costs the others nothing.
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
