"""What happens on a server, its clients and its processes, through the SDK and the command."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import tmem
import tmem.aio
from tests.lib.certificates import Authority
from tests.lib.command import Command
from tests.lib.daemon import daemon
from tests.lib.support import noise, page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with daemon("--memory", "32MiB") as running:
        yield running.address


@pytest.fixture
def store(server: str) -> Iterator[tmem.Store]:
    """The daemon's store, without pools."""
    with tmem.connect(server) as store:
        yield store
        for pool in store.pools():
            pool.destroy()


def stages(store: tmem.Store) -> Iterator[None]:
    """Step by step a pool is made, refuses three pages, and goes.

    What comes and goes between two looks of the daemon is not told of: a step is taken when the one before was told.
    """
    pool = store.pool("eventful", max_zpage=1024)
    yield
    pool.put(1, {index: noise(index) for index in range(3)})
    yield
    pool.destroy()
    yield


WANTED = [("pool_created", "", 0), ("refused", "poor_compression", 3), ("pool_destroyed", "", 0)]


def told(event: Any) -> tuple[str, str, int]:
    return event.kind, event.cause, event.count


def test_events_are_told_from_the_call_on(store: tmem.Store) -> None:
    events = store.events()
    seen = []
    for _ in stages(store):
        seen.append(next(events))
    assert [told(event) for event in seen] == WANTED
    assert {event.pool for event in seen} == {"eventful"}
    assert abs(seen[0].time - time.time()) < 60


def test_events_of_one_pool_end_with_it(store: tmem.Store) -> None:
    pool = store.pool("mine", max_zpage=1024)
    events = store.events("mine")
    store.pool("another", max_zpage=1024).put(1, {1: noise(1)})
    pool.put(1, {1: noise(1)})
    seen = [next(events)]
    pool.destroy()
    seen += events
    assert {event.pool for event in seen} == {"mine"}
    assert seen[-1].kind == "pool_destroyed"


def test_events_end_with_the_store(server: str) -> None:
    store = tmem.connect(server)
    events = store.events()
    store.close()
    with pytest.raises(tmem.ClosedError):
        next(events)


def test_events_that_cannot_be_watched_are_an_error(store: tmem.Store) -> None:
    with pytest.raises(tmem.UnknownPoolError):
        next(store.events("nowhere"))
    with pytest.raises(TypeError, match="pool must be a str"):
        store.events(5)  # type: ignore[arg-type]
    with tmem.connect("127.0.0.1:1", timeout=0.5) as away, pytest.raises(tmem.UnavailableError):
        next(away.events())


def test_events_are_told_to_tasks_too(server: str, store: tmem.Store) -> None:
    async def watch() -> list[Any]:
        async with tmem.aio.connect(server) as remote:
            events = await remote.events()
            steps = stages(store)
            seen = []
            while await asyncio.to_thread(next, steps, "done") is None:
                seen.append(await anext(events))
            return seen

    assert [told(event) for event in asyncio.run(watch())] == WANTED


def test_clients_and_workers_are_listed_alike(server: str, store: tmem.Store) -> None:
    store.pool("swap").put(1, {7: page(7)})
    (client,) = store.clients()
    assert (client.name, client.pools, client.pages, client.administrator) == ("local", 1, 1, True)
    (worker,) = store.workers()
    assert (worker.number, worker.port, worker.suggested) == (0, int(server.rpartition(":")[2]), True)

    async def listed() -> tuple[Any, Any]:
        async with tmem.aio.connect(server) as remote:
            return await remote.clients(), await remote.workers()

    clients, workers = asyncio.run(listed())
    assert ([one.name for one in clients], workers) == (["local"], [worker])


def test_the_command_prints_events_as_they_come(server: str, store: tmem.Store) -> None:
    pool = store.pool("eventful", max_zpage=1024)
    done = threading.Event()

    def refuse() -> None:
        while not done.wait(0.05):
            pool.put(1, {index: noise(index) for index in range(3)})

    busy = threading.Thread(target=refuse)
    busy.start()
    try:
        as_json = Command(server)("events", "--follow", "--count", "2", "--json")
        line = Command(server)("events", "--pool", "eventful", "--count", "1")
    finally:
        done.set()
        busy.join()
    for event in map(json.loads, as_json.splitlines()):
        assert (event["kind"], event["cause"], event["pool"]) == ("refused", "poor_compression", "eventful")
        assert event["count"] % 3 == 0
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}  eventful +refused \d+ pages  \(poor_compression\)  of local\n", line)


def test_a_quiet_server_has_no_events(server: str, store: tmem.Store) -> None:
    pool = store.pool("quiet")
    assert "no events" in Command(server)("events", "--seconds", "0.3", "--pool", pool.name)


def test_the_command_lists_clients_and_freezes_their_pools(server: str, store: tmem.Store) -> None:
    pool = store.pool("swap")
    cli = Command(server)
    (local,) = cli.json("client", "ls")
    assert (local["name"], local["pools"]) == ("local", 1)
    assert "administrate" in cli("client", "ls")
    cli("client", "freeze", "local")
    assert pool.frozen
    cli("client", "thaw", "local")
    assert not pool.frozen


def test_a_client_that_is_no_administrator_sees_its_own(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    alice = authority.client("alice")
    with daemon("--memory", "32MiB", "--admins", "root", *authority.flags(authority.server())) as running:
        cli = Command(running.address)
        tls = {"TMEM_CA": str(authority.file), "TMEM_CERT": str(alice.cert), "TMEM_KEY": str(alice.key)}
        assert "does it use TLS?" in cli.fails("pool", "ls")
        cli("pool", "create", "mine", **tls)
        assert "mine" in cli("pool", "ls", **tls)
        assert "mine" in cli("top", "--once", "--interval", "0.05", **tls)
        assert tmem.__version__ in cli("version", **tls)
        for line in (["stat"], ["check"], ["client", "ls"]):
            denied = cli.run(*line, **tls)
            assert (denied.exit_code, denied.stderr.count("\n")) == (1, 1)
            assert "administrator" in denied.stderr or "does not allow" in denied.stderr
        assert "footprint_bytes" in cli("stat", "mine", **tls)


def test_a_pool_is_restored_for_whoever_asks(server: str, store: tmem.Store, tmp_path: Path) -> None:
    store.pool("swap").put(1, {7: page(7)})
    Command(server)("save", "swap", tmp_path / "saved")
    authority = Authority(tmp_path / "tls")
    alice = authority.client("alice")
    with daemon("--memory", "32MiB", "--admins", "root", *authority.flags(authority.server())) as running:
        cli = Command(running.address)
        tls = {"TMEM_CA": str(authority.file), "TMEM_CERT": str(alice.cert), "TMEM_KEY": str(alice.key)}
        assert "restored 1 page" in cli("restore", tmp_path / "saved", **tls)
        shown = json.loads(cli("pool", "show", "swap", "--json", **tls))
        assert (shown["settings"]["owner"], shown["stats"]["pages"]) == ("alice", 1)
