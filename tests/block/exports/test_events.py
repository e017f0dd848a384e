"""Events of exports: told by any worker, though one alone has the exports, and through its replacement."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import tmem
from tests.block.lib.handshake import Wire, info_query, opened
from tests.block.lib.protocol import Opt
from tests.integration.daemon.test_workers import kill_worker
from tests.lib.daemon import daemon
from tests.lib.retry import eventually
from tests.lib.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20


def _watched(store: tmem.Store) -> Callable[[], Any]:
    """Gives the next event of the export, its kind and its count; None at the end."""
    told: queue.SimpleQueue[Any] = queue.SimpleQueue()
    events = store.events("export/disk")

    def read() -> None:
        for event in events:
            told.put((event.kind, event.count))
        told.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lambda: told.get(timeout=PATIENCE)


def _served(store: tmem.Store) -> bool:
    with suppress(tmem.UnavailableError):
        return bool(store.exports())
    return False


def test_what_an_export_goes_through_is_told_as_it_happens(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/sock"
    with daemon("--workers=2", f"--nbd={address}") as running, tmem.connect(running.addresses[1]) as store:
        store.create_export("disk", 4 * MIB)
        next_event = _watched(store)
        store.resize_export("disk", 8 * MIB)
        assert next_event() == ("export_resized", 8 * MIB)
        with opened(address, "disk"):
            assert next_event() == ("export_attached", 1)
            with Wire(address) as other:
                other.begin().refused(Opt.GO, info_query("disk"))
            assert next_event() == ("export_refused", 1)
            store.drain_export("disk")
            assert next_event() == ("export_drained", 0)
        assert next_event() == ("export_detached", 1)
        store.drain_export("disk", undo=True)
        assert next_event() == ("export_undrained", 0)
        kill_worker(running, 0)
        eventually(lambda: _served(store))
        store.resize_export("disk", 4 * MIB)
        assert next_event() == ("export_resized", 4 * MIB), "a worker that was replaced leaves no trace here"
        store.remove_export("disk")
        assert [next_event(), next_event()] == [("pool_destroyed", 0), None]
