"""What is sent again, what must happen before, and what is owed: sessions against a scripted server and clock."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

import tmem
from tests.lib.support import page
from tmem._model.settings import Kind, pool_settings
from tmem._protocol.connection import OnUnavailable, Options, ServerState, backoff, parse_target
from tmem._protocol.messages import Failure
from tmem._protocol.operations import Send, Steps
from tmem._protocol.page_ops import RemotePool, RemoteStore
from tmem._protocol.session import MOST_OWED, Debt
from tmem._runtime.breaker import Breaker
from tmem_proto.v1 import tmem_pb2 as pb

T = TypeVar("T")
STORED = bytes([pb.PUT_OUTCOME_STORED])
BUSY = Failure(8, "too many calls")
AWAY, LATE, UNKNOWN = Failure(14, "connection refused"), Failure(4, "deadline exceeded"), Failure(5, "unknown session")


class Server:
    """One pool in a dict. `script` answers the next calls of a method instead; a late mutation lands when told to."""

    def __init__(self) -> None:
        self.pages: dict[tuple[bytes, int], bytes] = {}
        self.session, self.epoch, self.pool_id = 1, 1, 1
        self.batch_limit = 4
        self.takes = False
        self.damaged: set[int] = set()
        self.away = False
        self.forgets_ids = False
        self.log: list[str] = []
        self.script: dict[str, list[Failure]] = {}
        self.late: list[Any] = []

    def call(self, method: str, request: Any) -> Any:
        self.log.append(method)
        if self.away:
            return AWAY
        planned = self.script.get(method)
        if planned:
            failure = planned.pop(0)
            if failure is LATE:
                self.late.append(request)
            return failure
        return self.answer(request)

    def land(self) -> list[Any]:
        """Let what was under way arrive."""
        late, self.late = self.late, []
        return [self.answer(request) for request in late]

    def answer(self, request: Any) -> Any:
        if isinstance(request, pb.OpenPoolRequest):
            if request.pool_id not in (0, self.pool_id) and not self.forgets_ids:
                return UNKNOWN
            settings = pb.PoolSettings(kind="ephemeral", page_size=4096)
            if request.HasField("settings"):
                settings.CopyFrom(request.settings)
                self.settings = settings
            session = pb.Session(id=self.session, epoch=self.epoch)
            return pb.OpenPoolResponse(
                session=session, settings=self.settings, batch_limit=self.batch_limit, pool_id=self.pool_id
            )
        if isinstance(request, pb.NewEpochRequest):
            if request.session_id != self.session:
                return UNKNOWN
            self.epoch += 1
            return pb.NewEpochResponse(epoch=self.epoch)
        if request.session.id != self.session:
            return UNKNOWN
        return self.pages_call(request, stale=request.session.epoch < self.epoch)

    def pages_call(self, request: Any, stale: bool) -> Any:
        keys = [(request.oid, index) for index in getattr(request, "indices", ())]
        if isinstance(request, pb.HasRequest):
            span = range(request.first, request.first + request.count)
            return pb.HasResponse(held=bytes((request.oid, index) in self.pages for index in span))
        if isinstance(request, pb.GetRequest):
            found = bytes(2 if key[1] in self.damaged else key in self.pages for key in keys)
            read = self.pages.pop if self.takes or request.exclusive else self.pages.get
            return pb.GetResponse(
                found=found, pages=b"".join(read(key, b"") for key, hit in zip(keys, found, strict=True) if hit == 1)
            )
        if isinstance(request, pb.PutRequest):
            if stale:
                return pb.PutResponse(outcomes=bytes([pb.PUT_OUTCOME_STALE]) * len(keys))
            outcomes = bytes(pb.PUT_OUTCOME_STORED + (key in self.pages) for key in keys)
            self.pages.update((key, request.pages[4096 * at : 4096 * at + 4096]) for at, key in enumerate(keys))
            return pb.PutResponse(outcomes=outcomes)
        if stale:
            return pb.FlushResponse(stale=True)
        if isinstance(request, pb.FlushObjectRequest):
            keys = [key for key in self.pages if key[0] == request.oid]
        return pb.FlushResponse(found=sum(self.pages.pop(key, None) is not None for key in keys))


class Client:
    """A pool of that server, with a clock that only waiting moves."""

    def __init__(
        self, server: Server, on_unavailable: OnUnavailable = "raise", kind: Kind = "ephemeral", **options: Any
    ) -> None:
        self.server = server
        self.now = 0.0
        self.state = ServerState(
            "ramhost:7717", Options(encoding="raw", on_unavailable=on_unavailable), lambda: self.now
        )
        self.store = RemoteStore(self.state)
        self.pool: RemotePool = self.run(self.store.pool("pool", pool_settings(kind=kind, **options)))
        server.log.clear()

    def run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                if isinstance(step, Send):
                    step = steps.send([self.server.call(step.method, request) for request in step.requests])
                else:
                    self.now += step.seconds
                    step = steps.send([])
        except StopIteration as end:
            result: T = end.value
            return result

    def put(self, pages: dict[int, bytes]) -> bytes:
        return self.run(self.pool.put(1, dict(pages)))

    def get(self, *indices: int) -> dict[int, bytes]:
        return self.run(self.pool.get(1, indices))

    def flush(self, *indices: int) -> int:
        return self.run(self.pool.flush(1, indices))

    @property
    def stats(self) -> tmem.ClientStats:
        return self.state.counters.stats()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server)


def test_a_large_call_is_split_at_the_servers_limit(client: Client, server: Server) -> None:
    pages = {index: page(index) for index in range(10)}
    assert client.put(pages) == STORED * 10
    assert server.log == ["Put"] * 3
    assert client.get(*range(12)) == pages


def test_a_server_that_is_busy_is_asked_again_and_nothing_is_in_doubt(client: Client, server: Server) -> None:
    server.script = {"Put": [BUSY], "Get": [BUSY]}
    assert client.put({7: page(7)}) == STORED
    assert client.get(7) == {7: page(7)}
    assert server.log == ["Put", "Put", "Get", "Get"]


def test_a_server_that_stays_busy_is_away(client: Client, server: Server) -> None:
    server.script = {"Put": [BUSY] * 1000}
    with pytest.raises(tmem.UnavailableError, match="too many calls"):
        client.put({7: page(7)})


def test_a_read_is_sent_again_at_once(client: Client, server: Server) -> None:
    client.put({7: page(7)})
    server.log.clear()
    server.script["Get"] = [AWAY]
    assert client.get(7) == {7: page(7)}
    assert server.log == ["Get", "Get"]


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_a_mutation_is_sent_again_only_in_a_new_epoch(client: Client, server: Server, failures: int) -> None:
    server.script["Put"] = [AWAY] * failures
    assert client.put({7: page(7)}) == STORED
    assert server.log == ["Put", "NewEpoch"] * failures + ["Put"]
    assert client.stats.new_epochs == failures


def test_only_the_failed_part_of_a_call_is_sent_again(client: Client, server: Server) -> None:
    server.script["Put"] = [AWAY]
    assert client.put({index: page(index) for index in range(8)}) == STORED * 8
    assert server.log == ["Put", "Put", "NewEpoch", "Put"]


def test_a_put_that_timed_out_never_lands_after_a_later_operation(client: Client, server: Server) -> None:
    client.put({7: page(1)})
    server.script["Put"] = [LATE]
    with pytest.raises(tmem.UnavailableError, match="no answer within 10 s"):
        client.put({7: page(2)})
    client.now += 60
    assert client.flush(7) == 1
    server.land()
    assert client.get(7) == {}


def test_even_a_read_after_a_doubtful_put_settles_it_first(client: Client, server: Server) -> None:
    server.script["Put"] = [LATE]
    with pytest.raises(tmem.UnavailableError):
        client.put({7: page(2)})
    client.now += 60
    before = client.get(7)
    server.land()
    assert client.get(7) == before


def test_an_operation_given_up_leaves_its_session_in_doubt(client: Client, server: Server) -> None:
    steps = client.pool.put(1, {7: page(7)})
    next(steps)
    steps.close()
    client.get(7)
    assert server.log == ["NewEpoch", "Get"]


def test_a_mutation_dropped_as_stale_is_sent_again(client: Client, server: Server) -> None:
    server.epoch = 2
    assert client.put({7: page(7)}) == STORED
    assert server.log == ["Put", "NewEpoch", "Put"]


def test_a_forgotten_session_is_opened_again(client: Client, server: Server) -> None:
    client.put({7: page(7)})
    server.session, server.epoch = 2, 1
    assert client.get(7) == {7: page(7)}
    assert client.stats.reopened == 1


def test_sessions_that_end_again_and_again_do_not_make_a_pool_unknown(client: Client, server: Server) -> None:
    server.script["Put"] = [UNKNOWN] * 3
    assert client.put({7: page(7)}) == STORED
    assert client.stats.reopened == 3


def test_a_pool_that_is_gone_stays_gone(client: Client, server: Server) -> None:
    server.session = 2
    server.script["OpenPool"] = [UNKNOWN]
    for _ in range(2):
        with pytest.raises(tmem.UnknownPoolError, match="'pool'"):
            client.get(7)


@pytest.mark.parametrize("forgets_ids", [False, True])
def test_another_pool_of_the_name_is_not_the_pool(client: Client, server: Server, forgets_ids: bool) -> None:
    client.put({7: page(7)})
    server.session, server.pool_id, server.forgets_ids = 2, 2, forgets_ids
    for _ in range(2):
        with pytest.raises(tmem.UnknownPoolError, match="'pool'"):
            client.get(7)


def test_a_pool_opened_again_by_its_name_is_the_new_one(client: Client, server: Server) -> None:
    old = client.pool
    server.session, server.pool_id = 2, 2
    client.pool = client.run(client.store.pool("pool", pool_settings(kind="ephemeral")))
    assert client.put({7: page(7)}) == STORED
    with pytest.raises(tmem.UnknownPoolError):
        client.run(old.get(1, [7]))
    assert client.get(7) == {7: page(7)}


def test_a_server_without_pool_ids_is_served_too(server: Server) -> None:
    server.pool_id = 0
    client = Client(server)
    client.put({7: page(7)})
    server.session = 2
    assert client.get(7) == {7: page(7)}


def test_an_unavailable_server_is_an_error_after_the_timeout_then_at_once(client: Client, server: Server) -> None:
    server.away = True
    with pytest.raises(tmem.UnavailableError, match="connection refused"):
        client.get(7)
    assert 8 < client.now <= 10
    server.log.clear()
    with pytest.raises(tmem.UnavailableError, match="is unavailable"):
        client.get(7)
    assert server.log == []
    server.away = False
    client.now += 1
    assert client.get(7) == {}
    assert client.stats.breaker_trips == 1


def test_misses_and_refusals_are_immediate_while_the_server_is_unavailable(server: Server) -> None:
    client = Client(server, "miss")
    client.put({7: page(7)})
    server.away = True
    assert client.get(7) == {}
    assert client.now < 1
    server.log.clear()
    assert client.get(7, 8) == {}
    assert tmem.Outcomes(0, client.put({7: page(8), 9: page(9)})).reasons == {"unavailable": 2}
    assert client.run(client.pool.has(1, 0, 3)) == bytes(3)
    assert server.log == []
    stats = client.stats
    assert (stats.missed_unavailable, stats.refused_unavailable, stats.owed_flushes) == (6, 2, 2)


def test_what_was_refused_or_flushed_while_away_is_never_seen_again(server: Server) -> None:
    client = Client(server, "miss")
    client.put({index: page(index) for index in range(4)})
    client.run(client.pool.put(2, {0: page(0)}))
    server.away = True
    client.put({0: page(9)})
    assert client.flush(1) == 0
    assert client.run(client.pool.flush_object(2)) == 0
    server.away = False
    client.now += 10
    assert client.get(0, 1, 2, 3) == {2: page(2), 3: page(3)}
    assert client.run(client.pool.get(2, [0])) == {}


def test_a_late_put_that_was_answered_as_refused_is_never_seen(server: Server) -> None:
    client = Client(server, "miss")
    server.script["Put"] = [LATE]
    assert tmem.Outcomes(0, client.put({7: page(7)})).refused == 1
    client.now += 10
    assert client.get(7) == {}
    server.land()
    assert client.get(7) == {}


def test_a_debt_that_could_not_be_paid_is_kept(server: Server) -> None:
    client = Client(server, "miss")
    client.put({7: page(7)})
    server.away = True
    client.flush(7)
    server.away = False
    server.script["Flush"] = [AWAY, AWAY]
    client.now += 10
    assert client.get(7) == {}
    client.now += 10
    assert client.get(7) == {}
    assert server.pages == {}


def test_a_persistent_page_out_of_reach_is_no_miss(server: Server) -> None:
    client = Client(server, "miss", "persistent")
    client.put({7: page(7)})
    server.away = True
    with pytest.raises(tmem.UnavailableError):
        client.get(7)
    assert tmem.Outcomes(0, client.put({8: page(8)})).refused == 1


def test_a_pool_can_be_opened_while_the_server_is_away(server: Server) -> None:
    server.away = True
    client = Client(server, "miss")
    assert client.get(7) == {}
    server.away = False
    client.now += 10
    assert client.put({7: page(7)}) == STORED


def test_debts_are_bounded() -> None:
    debt = Debt()
    debt.add(b"one", range(MOST_OWED))
    with pytest.raises(tmem.UnavailableError, match="already pending"):
        debt.add(b"two", [1])
    assert debt.take() == (b"one", set(range(MOST_OWED)))
    assert debt
    debt.due = None
    assert not debt
    debt.add(b"two", [1])
    debt.add(b"two", None)
    assert debt.add(b"two", [5]) == 0
    assert debt.take() == (b"two", None)


def test_the_breaker_lets_one_try_now_and_then() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    breaker.trip()
    assert not breaker.admits()
    now[0] = 1.0
    assert [breaker.admits(), breaker.admits()] == [True, False]
    breaker.reset()
    assert [breaker.admits(), breaker.admits()] == [True, True]


def test_waits_double_up_to_a_bound() -> None:
    assert all(0.0 < backoff(attempt) <= 2.0 for attempt in range(2000))
    assert backoff(0) <= 0.05


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("ramhost:7717", "ramhost:7717"),
        ("grpc://10.0.0.1:1", "10.0.0.1:1"),
        ("tcp://ramhost:1/", "ramhost:1"),
        ("grpcs://ramhost", "ramhost:7717"),
        ("[::1]:7718", "[::1]:7718"),
        ("[fe80::1%eth0]", "[fe80::1%eth0]:7717"),
        (":7718", "localhost:7718"),
    ],
)
def test_addresses(address: str, target: str) -> None:
    assert parse_target(address) == target


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"timeout": 0}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"encoding": "gzip"}, ValueError),
        ({"on_unavailable": "hang"}, ValueError),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        tmem.connect("ramhost:7717", **options)
