"""Certificates that are renewed on disk, on both sides, while clients of the SDK work."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import tmem
from tests.faults.proxy import proxy
from tests.lib.blocking import blocking
from tests.lib.certificates import Authority, Pair
from tests.lib.daemon import Daemon, daemon
from tests.lib.support import PATIENCE, page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROUNDS = 60


def replace(source: Path, target: Path) -> None:
    """As renewers of certificates do it: in one step."""
    new = target.with_suffix(".new")
    new.write_bytes(source.read_bytes())
    os.replace(new, target)


def renew(pair: Pair, fresh: Pair) -> None:
    replace(fresh.key, pair.key)
    replace(fresh.cert, pair.cert)


def files(authority: Authority, client: Pair) -> tmem.Tls:
    return tmem.Tls(ca=authority.file, cert=client.cert, key=client.key)


@contextmanager
def served_as_before(before: Daemon, flags: list[str]) -> Iterator[None]:
    """A daemon that died, and another in its place."""
    before.kill()
    with daemon(*flags, f"--listen={before.address}"):
        yield


@pytest.mark.parametrize("flavour", ["sync", "grpc", "async"])
def test_a_client_connects_again_with_what_its_files_say_by_then(
    tmp_path: Path, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is new at once: whoever still has the old files trusts nobody here, and is trusted by nobody."""
    if flavour == "grpc":
        monkeypatch.setenv("TMEM_TRANSPORT", "grpc")
    old, new, live = (Authority(tmp_path / name) for name in ("old", "new", "live"))
    mine = old.client("alice")
    replace(old.file, live.file)
    connect: Any = blocking if flavour == "async" else tmem.connect
    with (
        daemon(*old.flags(old.server())) as first,
        connect(first.address, tls=files(live, mine), timeout=PATIENCE) as store,
    ):
        assert store.pool("pool").put(1, {7: page(7)})[7].stored
        renew(mine, new.client("alice"))
        replace(new.file, live.file)
        with served_as_before(first, new.flags(new.server())):
            pool = store.pool("another")
            assert pool.put(1, {7: page(7)})[7].stored
            assert pool.get(1, [7]) == {7: page(7)}
            assert pool.settings.owner == "alice"


def test_files_that_cannot_be_used_change_nothing(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    mine, other = authority.client("alice"), authority.client("alice")
    flags = authority.flags(authority.server())
    with daemon(*flags) as first, tmem.connect(first.address, tls=files(authority, mine), timeout=PATIENCE) as store:
        assert store.pools() == []
        replace(other.key, mine.key)  # and not its certificate
        with served_as_before(first, flags):
            assert store.pool("pool").put(1, {7: page(7)})[7].stored
        mine.cert.unlink()
        with daemon(*flags, f"--listen={first.address}"):
            assert store.pools() == []


class _User(threading.Thread):
    """Puts and gets through one store until told to end; `failed` says what went wrong."""

    def __init__(self, store: tmem.Store, number: int, ending: threading.Event) -> None:
        super().__init__(daemon=True)
        self._pool = store.pool(f"pool{number}")
        self._ending = ending
        self.rounds = 0
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._ending.is_set():
                index = self.rounds % 64
                assert self._pool.put(1, {index: page(self.rounds)})[index].stored
                assert self._pool.get(1, [index]) == {index: page(self.rounds)}
                self.rounds += 1
        except BaseException as error:
            self.failed = error


def test_nobody_notices_that_certificates_are_renewed_every_moment(tmp_path: Path) -> None:
    """Connections are cut all the while, so that new ones are made with the files of every moment."""
    authority = Authority(tmp_path)
    server, mine = authority.server(), authority.client("alice")
    ending = threading.Event()
    with daemon(*authority.flags(server)) as running, proxy(running.address) as way:
        stores = [tmem.connect(way.address, tls=files(authority, mine), timeout=PATIENCE) for _ in range(3)]
        users = [_User(store, number, ending) for number, store in enumerate(stores)]
        for user in users:
            user.start()
        for number in range(ROUNDS):
            renew(server, authority.server(f"server{number % 2}"))
            renew(mine, authority.client("alice"))
            way.sever()
            with tmem.connect(running.address, tls=files(authority, mine), timeout=PATIENCE) as fresh:
                assert len(fresh.pools()) == len(users)
        ending.set()
        for user in users:
            user.join(PATIENCE)
            assert user.failed is None, user.failed
            assert user.rounds
        for store in stores:
            store.close()
        running.process.terminate()
        _, said = running.process.communicate(timeout=PATIENCE)
    assert "Traceback" not in said
