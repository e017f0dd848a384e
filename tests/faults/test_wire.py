"""The law over a network that holds, cuts and reorders: a client behind a proxy, a real daemon behind that.

A message that arrives late comes from a connection that its client gave up; the client has gone on over another.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import grpc
import pytest

import tmem
from tests.faults.proxy import Proxy, proxy
from tests.lib.blocking import blocking
from tests.lib.daemon import Daemon, daemon
from tests.lib.support import PATIENCE
from tmem_proto.v1.admin_pb2 import StatsRequest
from tmem_proto.v1.admin_pb2_grpc import TmemAdminStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

OLD, NEW, LATE = b"o" * 4096, b"n" * 4096, b"l" * 4096
TIMEOUT = 1.0
# Bytes of replies that pass before the cut: within the connection's preface, within and after a reply's headers.
CUTS = (0, 1, 9, 30, 60, 90, 130, 200)


@pytest.fixture(scope="module")
def server() -> Iterator[Daemon]:
    with daemon("--memory=64MiB") as running:
        yield running


@pytest.fixture
def way(server: Daemon) -> Iterator[Proxy]:
    with proxy(server.address) as running:
        yield running


@pytest.fixture
def direct(server: Daemon) -> Iterator[tmem.Store]:
    with tmem.connect(server.address) as store:
        yield store


@pytest.fixture(params=["sync", "aio"])
def faulty(request: pytest.FixtureRequest, way: Proxy) -> Iterator[Any]:
    """A store behind the proxy."""
    if request.param == "aio":
        with blocking(way.address, timeout=TIMEOUT) as store:
            yield store
    else:
        with tmem.connect(way.address, timeout=TIMEOUT) as store:
            yield store


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"p{abs(hash(request.node.name)):x}"


MUTATIONS: dict[str, Callable[[Any], object]] = {
    "put": lambda pool: pool.put(1, {7: LATE}),
    "flush": lambda pool: pool.flush(1, [7]),
    "flush_object": lambda pool: pool.flush_object(1),
    "exclusive get": lambda pool: pool.get(1, [7], exclusive=True),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_arrives_after_the_client_went_on_changes_nothing(
    faulty: Any, way: Proxy, direct: tmem.Store, name: str, mutation: str
) -> None:
    pool = faulty.pool(name)
    pool.put(1, {7: OLD})
    way.divert()
    _until_served(lambda: MUTATIONS[mutation](pool))
    assert pool.put(1, {7: NEW})[7].stored
    way.release()
    assert pool.get(1, [7]) == {7: NEW}
    assert direct.find_pool(name).get(1, [7]) == {7: NEW}


def test_a_put_that_arrives_late_is_counted(faulty: Any, way: Proxy, server: Daemon, name: str) -> None:
    pool = faulty.pool(name)
    pool.put(1, {7: OLD})
    before = _late(server)
    way.divert()
    assert _until_served(lambda: pool.put(1, {7: LATE}))[7].stored
    assert pool.put(1, {7: NEW})[7].stored
    way.release()
    assert _late(server) == before + 1


def test_a_pool_made_anew_is_not_destroyed_by_an_old_message(
    faulty: Any, way: Proxy, direct: tmem.Store, name: str
) -> None:
    pool = faulty.pool(name)
    way.divert()
    _until_served(pool.destroy)
    anew = direct.pool(name)
    anew.put(1, {7: NEW})
    way.release()
    assert direct.find_pool(name).get(1, [7]) == {7: NEW}


@pytest.mark.parametrize("cut", CUTS)
def test_a_reply_that_is_cut_anywhere_loses_nothing(faulty: Any, way: Proxy, name: str, cut: int) -> None:
    pool = faulty.pool(name)
    pool.put(1, {7: OLD, 8: OLD})
    way.cut_replies_after(cut)
    assert _until_served(lambda: pool.put(1, {7: NEW}))[7].stored
    way.cut_replies_after(cut)
    assert _until_served(lambda: pool.get(1, [7, 8], exclusive=True)) == {7: NEW, 8: OLD}
    way.cut_replies_after(cut)
    assert _until_served(lambda: pool.flush(1, [7, 8])) in (0, 2)
    assert pool.get(1, [7, 8]) == {}


@pytest.mark.parametrize("seed", range(4))
def test_every_answer_is_one_that_the_law_allows(faulty: Any, way: Proxy, name: str, seed: int) -> None:
    """Random operations and faults against what may be there: one value, or several after an answer was lost."""
    dice = random.Random(seed)
    pool, model = faulty.pool(name), Model(dice)
    for _ in range(60):
        _misbehave(way, dice)
        model.step(pool)
    way.release()
    _until_served(lambda: pool.has(1, 0, 1))
    model.finish(pool)


class Model:
    """What each key may hold: None is nothing."""

    KEYS = range(6)

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._may: dict[int, set[bytes | None]] = {key: {None} for key in self.KEYS}

    def step(self, pool: Any) -> None:
        key, page = self._dice.choice(self.KEYS), self._dice.randbytes(64) * 64
        kind = self._dice.choice(["put", "put", "get", "get", "take", "flush"])
        try:
            if kind == "put":
                assert pool.put(1, {key: page})[key].stored
                self._may[key] = {page}
            elif kind == "flush":
                pool.flush(1, [key])
                self._may[key] = {None}
            else:
                self._got(key, pool.get(1, [key], exclusive=kind == "take").get(key), kind == "take")
        except tmem.UnavailableError:
            if kind in ("put", "flush"):
                self._may[key].add(page if kind == "put" else None)

    def _got(self, key: int, page: bytes | None, taken: bool) -> None:
        assert page in self._may[key]
        # Where the acknowledgement is lost the page stays.
        self._may[key] = {page, None} if taken else {page}

    def finish(self, pool: Any) -> None:
        for key in self.KEYS:
            assert pool.get(1, [key]).get(key) in self._may[key]


def _misbehave(way: Proxy, dice: random.Random) -> None:
    match dice.choice(["well", "well", "well", "cut", "cut", "hold", "divert", "sever", "release"]):
        case "cut":
            way.cut_replies_after(dice.choice(CUTS))
        case "hold":
            way.hold()
            way.sever()
        case "divert":
            way.divert()
        case "sever":
            way.sever()
        case "release":
            way.release()


def _late(server: Daemon) -> int:
    """Messages that the daemon has dropped because they came late."""
    with grpc.insecure_channel(server.address) as channel:
        return TmemAdminStub(channel).Stats(StatsRequest(), timeout=PATIENCE).daemon["late_messages"]


def _until_served(call: Callable[[], Any]) -> Any:
    """The answer, once there is one: a client that lost its server tries again by and by."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return call()
        except tmem.UnavailableError:
            if time.monotonic() > end:
                raise
