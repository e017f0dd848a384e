"""Rights and quotas over the wire: whose a pool is, and what others cannot do to it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.lib.certificates import Authority
from tests.lib.daemon import OID, Client, daemon
from tests.lib.retry import eventually
from tests.lib.support import PATIENCE, page
from tmem_proto.v1 import admin_pb2 as admin
from tmem_proto.v1 import tmem_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CONFIG = """
admins = ["ops"]

[clients.alice]
quota = "4MiB"
weight = 3

[clients.bob]
shared = ["public-*"]
"""
DENIED, UNKNOWN = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND
EXHAUSTED, MISMATCH = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.FAILED_PRECONDITION
MIB = 1 << 20


class Tenants:
    """The clients of one daemon, each by the name in its certificate."""

    def __init__(self, authority: Authority, address: str, stack: ExitStack) -> None:
        self._authority, self._address, self._stack = authority, address, stack
        self.alice, self.bob, self.carol, self.ops = map(self.another, ("alice", "bob", "carol", "ops"))

    def another(self, name: str) -> Client:
        client = Client(self._address, self._authority.credentials(self._authority.client(name)))
        self._stack.callback(client.close)
        return client


@pytest.fixture(scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    directory = tmp_path_factory.mktemp("access")
    authority = Authority(directory)
    config = directory / "tmemd.toml"
    config.write_text(CONFIG)
    with daemon(f"--config={config}", *authority.flags(authority.server())) as running, ExitStack() as stack:
        yield Tenants(authority, running.address, stack)


@pytest.fixture
def tenants(everybody: Tenants) -> Iterator[Tenants]:
    """All clients, and no pools."""
    yield everybody
    for name in listed(everybody.ops):
        everybody.ops.admin.DestroyPool(admin.DestroyPoolRequest(name=name))


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


def watch(client: Client, pool: str = "") -> Iterator[admin.Event]:
    """A stream of events that has begun."""
    stream = client.admin.Watch(admin.WatchRequest(pool=pool), timeout=PATIENCE)
    assert stream.initial_metadata() is not None
    return stream


def status(call: Callable[[], object]) -> grpc.StatusCode:
    return refused(call)[0]


def get_pool(client: Client, name: str) -> admin.Pool:
    return client.admin.GetPool(admin.GetPoolRequest(name=name), timeout=PATIENCE).pool


def listed(client: Client) -> set[str]:
    return {pool.name for pool in client.admin.ListPools(admin.ListPoolsRequest(), timeout=PATIENCE).pools}


def calls_of_a_session(client: Client, session: pb.Session) -> dict[str, Callable[[], object]]:
    """Every call that names a session."""
    put = pb.PutRequest(session=session, oid=OID, indices=[1], pages=page(9))
    get = pb.GetRequest(session=session, oid=OID, indices=[1], exclusive=True)
    flush = pb.FlushRequest(session=session, oid=OID, indices=[1])
    return {
        "Put": lambda: client.tmem.Put(put),
        "Get": lambda: client.tmem.Get(get),
        "Has": lambda: client.tmem.Has(pb.HasRequest(session=session, oid=OID, count=9)),
        "Flush": lambda: client.tmem.Flush(flush),
        "FlushObject": lambda: client.tmem.FlushObject(pb.FlushObjectRequest(session=session, oid=OID)),
        "Acknowledge": lambda: client.tmem.Acknowledge(pb.AcknowledgeRequest(session=session, acknowledgement=1)),
        "NewEpoch": lambda: client.tmem.NewEpoch(pb.NewEpochRequest(session_id=session.id)),
    }


def calls_of_a_pool(client: Client, name: str) -> dict[str, Callable[[], object]]:
    """Every call that names a pool."""
    stub, settings = client.admin, pb.PoolSettings(kind="persistent")
    return {
        "OpenPool": lambda: client.tmem.OpenPool(pb.OpenPoolRequest(name=name)),
        "OpenPool with settings": lambda: client.tmem.OpenPool(pb.OpenPoolRequest(name=name, settings=settings)),
        "GetPool": lambda: stub.GetPool(admin.GetPoolRequest(name=name)),
        "DestroyPool": lambda: stub.DestroyPool(admin.DestroyPoolRequest(name=name)),
        "Freeze": lambda: stub.Freeze(admin.FreezeRequest(pool=name)),
        "Thaw": lambda: stub.Thaw(admin.ThawRequest(pool=name)),
        "SetQuota": lambda: stub.SetQuota(admin.SetQuotaRequest(pool=name, quota=MIB)),
        "Scan": lambda: stub.Scan(admin.ScanRequest(pool=name)),
        "SetWeight": lambda: stub.SetWeight(admin.SetWeightRequest(pool=name, weight=1)),
    }


def test_no_client_touches_a_private_pool(tenants: Tenants) -> None:
    alice, carol = tenants.alice, tenants.carol
    alice.open("private", quota=MIB)
    alice.put({1: page(1)})
    before = get_pool(alice, "private")
    for name, call in calls_of_a_pool(carol, "private").items():
        code, text = refused(call)
        assert (name, code) == (name, DENIED)
        assert "alice" not in text
    for name, call in calls_of_a_session(carol, alice.session).items():
        assert (name, refused(call)) == (name, (UNKNOWN, "unknown session: open the pool again"))
    for number in (get_pool(alice, "private").id, 999):
        destroy = admin.DestroyPoolRequest(name="private", pool_id=number)
        assert status(partial(carol.admin.DestroyPool, destroy)) == DENIED, "ids are not for strangers to try"
    assert listed(carol) == set()
    assert status(lambda: carol.admin.Freeze(admin.FreezeRequest(client="alice"))) == DENIED
    assert alice.get([1]) == {1: page(1)}
    assert get_pool(alice, "private").settings == before.settings
    assert not get_pool(alice, "private").frozen


def test_a_session_in_a_stream_is_its_clients_alone(tenants: Tenants) -> None:
    tenants.alice.open("private")
    tenants.alice.put({1: page(1)})
    session = tenants.alice.session
    get = pb.Command(id=1, get=pb.GetRequest(session=session, oid=OID, indices=[1], exclusive=True))
    flush = pb.Command(id=2, flush=pb.FlushRequest(session=session, oid=OID, indices=[1]))
    replies = list(tenants.carol.tmem.Exchange(iter([get, flush]), timeout=PATIENCE))
    assert [reply.code for reply in replies] == [UNKNOWN.value[0]] * 2
    (mine,) = tenants.alice.tmem.Exchange(iter([get]), timeout=PATIENCE)
    assert mine.get.pages == page(1)


def test_a_client_cares_for_its_own_pools(tenants: Tenants) -> None:
    alice = tenants.alice
    opened = alice.open("own", kind="ephemeral", quota=2 * MIB)
    assert (opened.settings.owner, opened.settings.weight) == ("alice", 3)
    alice.admin.Freeze(admin.FreezeRequest(client="alice"))
    assert get_pool(alice, "own").frozen
    alice.admin.Thaw(admin.ThawRequest(pool="own"))
    alice.admin.SetQuota(admin.SetQuotaRequest(pool="own", quota=MIB))
    alice.admin.SetWeight(admin.SetWeightRequest(pool="own", weight=2))
    assert status(lambda: alice.admin.SetWeight(admin.SetWeightRequest(pool="own", weight=4))) == DENIED
    own = get_pool(alice, "own")
    assert (own.frozen, own.settings.quota, own.settings.weight) == (False, MIB, 2)
    assert listed(alice) == {"own"}
    alice.admin.DestroyPool(admin.DestroyPoolRequest(name="own"))
    assert listed(alice) == set()


def test_the_care_of_the_store_is_for_administrators(tenants: Tenants) -> None:
    for client, administrator in ((tenants.alice, False), (tenants.ops, True)):
        stub = client.admin
        calls: dict[str, Callable[[], object]] = {
            "Relinquish": partial(stub.Relinquish, admin.RelinquishRequest(size=1)),
            "Resize": partial(stub.Resize, admin.ResizeRequest(memory=80 * MIB)),
            "Compact": partial(stub.Compact, admin.CompactRequest()),
            "Check": partial(stub.Check, admin.CheckRequest()),
            "ListClients": partial(stub.ListClients, admin.ListClientsRequest()),
        }
        for name, call in calls.items():
            assert administrator or (name, status(call)) == (name, DENIED)
            if administrator:
                call()
        stats = stub.Stats(admin.StatsRequest())
        assert (stats.client, stats.administrator) == ("ops" if administrator else "alice", administrator)
        assert bool(stats.store) == bool(stats.daemon) == administrator
        assert stats.version
    assert status(lambda: tenants.alice.admin.Inject(admin.InjectRequest())) == DENIED


def test_an_administrator_cares_for_all_pools(tenants: Tenants) -> None:
    ops = tenants.ops
    tenants.alice.open("one", quota=MIB)
    ops.admin.CreatePool(
        admin.CreatePoolRequest(name="made", settings=pb.PoolSettings(kind="ephemeral", owner="carol"))
    )
    assert listed(ops) == {"one", "made"}
    assert listed(tenants.carol) == {"made"}
    ops.admin.Freeze(admin.FreezeRequest(client="carol"))
    assert get_pool(tenants.carol, "made").frozen
    assert not get_pool(ops, "one").frozen
    ops.open("one", quota=MIB, weight=3)
    assert ops.put({1: page(1)}) == bytes([pb.PUT_OUTCOME_STORED])
    clients = {one.name: one for one in ops.admin.ListClients(admin.ListClientsRequest()).clients}
    assert clients.keys() == {"alice", "bob", "carol", "ops"}
    alice = clients["alice"]
    assert (alice.quota, alice.weight, alice.administrator, alice.pools) == (4 * MIB, 3, False, 1)
    assert alice.pages == 1
    assert alice.footprint_bytes > 0
    assert clients["ops"].administrator
    tenants.another("dave").open("daves")
    after = {one.name: one for one in ops.admin.ListClients(admin.ListClientsRequest()).clients}
    assert (after["dave"].sessions, after["alice"].sessions) == (1, alice.sessions)


def test_only_an_administrator_names_another_owner(tenants: Tenants) -> None:
    settings = pb.PoolSettings(kind="persistent", owner="bob")
    request = pb.OpenPoolRequest(name="theirs", settings=settings)
    assert status(lambda: tenants.carol.tmem.OpenPool(request)) == DENIED
    assert status(lambda: tenants.carol.open("heavy", kind="ephemeral", weight=2)) == DENIED
    assert listed(tenants.ops) == set()


def test_a_shared_pool_is_open_to_those_whose_patterns_match(tenants: Tenants) -> None:
    alice, bob, carol = tenants.alice, tenants.bob, tenants.carol
    for name in ("public-1", "hidden-1"):
        alice.open(name, kind="ephemeral", shared=True, quota=MIB)
        alice.put({1: page(1)})
    bob.open("public-1", kind="ephemeral", shared=True)
    assert bob.get([1]) == {1: page(1)}
    assert listed(bob) == {"public-1"}
    assert get_pool(bob, "public-1").settings.owner == "alice"
    for name, call in calls_of_a_pool(bob, "public-1").items():
        if name not in ("OpenPool", "OpenPool with settings", "GetPool"):
            assert (name, status(call)) == (name, DENIED)
    for client, name in ((bob, "hidden-1"), (carol, "public-1")):
        assert status(partial(client.tmem.OpenPool, pb.OpenPoolRequest(name=name))) == DENIED
    alice.open("public-2", kind="ephemeral", quota=MIB)
    assert status(lambda: bob.tmem.OpenPool(pb.OpenPoolRequest(name="public-2"))) == DENIED


def test_the_quotas_of_a_clients_pools_are_parts_of_its_own(tenants: Tenants) -> None:
    alice, ops = tenants.alice, tenants.ops
    alice.open("one", quota=MIB)
    assert alice.open("rest").settings.quota == 3 * MIB
    assert alice.open("rest").settings.quota == 3 * MIB, "opened again as it was made"
    code, text = refused(lambda: alice.open("more"))
    assert code == EXHAUSTED
    assert f"{4 * MIB} bytes" in text
    assert "0 are left" in text
    for size in (2 * MIB, 0):
        alice.admin.SetQuota(admin.SetQuotaRequest(pool="rest", quota=size))
        assert get_pool(alice, "rest").settings.quota == (size or 3 * MIB)
    for client in (alice, ops):
        request = admin.SetQuotaRequest(pool="rest", quota=3 * MIB + 1)
        assert status(partial(client.admin.SetQuota, request)) == EXHAUSTED
    alice.admin.SetQuota(admin.SetQuotaRequest(pool="rest", quota=2 * MIB))
    assert status(lambda: alice.open("more", quota=MIB + 1)) == EXHAUSTED
    settings = pb.PoolSettings(kind="persistent", owner="alice", quota=MIB + 1)
    assert status(lambda: ops.admin.CreatePool(admin.CreatePoolRequest(name="more", settings=settings))) == EXHAUSTED
    assert alice.open("more", quota=MIB).settings.quota == MIB
    alice.admin.DestroyPool(admin.DestroyPoolRequest(name="one"))
    assert alice.open("again").settings.quota == MIB
    assert status(lambda: alice.open("again", quota=2 * MIB)) == MISMATCH
    assert tenants.carol.open("carols").settings.quota == 0


def test_a_pool_that_took_no_part_leaves_nothing(tmp_path: Path, arena: Path) -> None:
    config = tmp_path / "tmemd.toml"
    with daemon(f"--arena={arena}") as running:
        client = Client(running.address)
        assert client.open("old").settings.owner == "local"
        client.close()
    config.write_text('[clients.local]\nquota = "4MiB"\n')
    with daemon(f"--arena={arena}", f"--config={config}") as running:
        client = Client(running.address)
        code, text = refused(lambda: client.open("new"))
        assert code == EXHAUSTED
        assert "'old'" in text
        client.admin.SetQuota(admin.SetQuotaRequest(pool="old", quota=MIB))
        assert client.open("new").settings.quota == 3 * MIB
        client.close()


def test_a_pool_or_a_client_is_frozen_not_both(tenants: Tenants) -> None:
    for request in (admin.FreezeRequest(), admin.FreezeRequest(pool="one", client="ops")):
        with pytest.raises(grpc.RpcError, match="either a pool or a client"):
            tenants.ops.admin.Freeze(request)


def test_a_client_may_watch_its_own_pools_and_no_others(tenants: Tenants) -> None:
    tenants.alice.open("hers", quota=1 << 20)
    tenants.bob.open("his")
    assert status(lambda: next(watch(tenants.alice))) == DENIED
    assert status(lambda: next(watch(tenants.alice, "his"))) == DENIED
    assert status(lambda: next(watch(tenants.bob, "hers"))) == DENIED
    own, everything = watch(tenants.alice, "hers"), watch(tenants.ops)
    for name in ("his", "hers"):
        tenants.ops.admin.Freeze(admin.FreezeRequest(pool=name))
    frozen = next(own)
    assert (frozen.kind, frozen.pool, frozen.client) == (admin.EVENT_KIND_POOL_FROZEN, "hers", "alice")
    assert {next(everything).pool, next(everything).pool} == {"his", "hers"}


def test_no_client_takes_all_watchers(tenants: Tenants) -> None:
    """Of 16, 4 are a client's at most, and 12 all clients' but the administrators'."""
    streams = []
    for client, name in ((tenants.alice, "hers"), (tenants.bob, "his"), (tenants.carol, "theirs")):
        client.open(name, quota=MIB)
        streams += [watch(client, name) for _ in range(4)]
        code, why = refused(lambda client=client, name=name: next(watch(client, name)))  # type: ignore[misc]
        assert (code, "4 watchers" in why) == (EXHAUSTED, True)
    dave = tenants.another("dave")
    dave.open("fourth")
    assert refused(lambda: next(watch(dave, "fourth"))) == (EXHAUSTED, "12 watchers are connected, which is the limit")
    streams += [watch(tenants.ops) for _ in range(4)]
    assert status(lambda: next(watch(tenants.ops))) == EXHAUSTED
    for stream in streams:
        stream.cancel()  # type: ignore[attr-defined]
    eventually(lambda: watch(dave, "fourth"))


def test_what_the_host_runs_is_told_to_administrators(tenants: Tenants) -> None:
    for client, tells in ((tenants.alice, False), (tenants.ops, True)):
        told = client.admin.ListWorkers(admin.ListWorkersRequest(), timeout=PATIENCE)
        assert [(worker.port > 0, worker.process > 0) for worker in told.workers] == [(True, tells)]
        assert told.suggested_port == told.workers[0].port


def test_a_watch_does_not_pass_to_the_next_owner_of_a_name(tenants: Tenants) -> None:
    tenants.alice.open("passed", quota=1 << 20)
    stream = watch(tenants.alice, "passed")
    tenants.alice.admin.DestroyPool(admin.DestroyPoolRequest(name="passed"))
    tenants.bob.open("passed")
    assert [event.kind for event in stream] == [admin.EVENT_KIND_POOL_DESTROYED]


def test_a_clients_quota_is_one_among_workers(tmp_path: Path) -> None:
    """All workers make pools for one client at once; together they give out its quota and not a byte more."""
    authority = Authority(tmp_path)
    config = tmp_path / "tmemd.toml"
    config.write_text(CONFIG)
    flags = [f"--config={config}", "--workers=2", *authority.flags(authority.server())]
    part, most = MIB // 8, 32
    with daemon(*flags) as running, ExitStack() as stack:
        alice = authority.credentials(authority.client("alice"))
        clients = [Client(address, alice) for address in running.addresses]
        assert len(clients) == 2
        for client in clients:
            stack.callback(client.close)
        settings = pb.PoolSettings(kind="persistent", quota=part)
        requests = [pb.OpenPoolRequest(name=f"part-{at}", settings=settings) for at in range(most + 20)]
        calls = [clients[at % 2].tmem.OpenPool.future(request, timeout=PATIENCE) for at, request in enumerate(requests)]
        codes = [call.code() for call in calls]
        assert codes.count(grpc.StatusCode.OK) == most
        assert codes.count(EXHAUSTED) == 20
        pools = clients[0].admin.ListPools(admin.ListPoolsRequest(), timeout=PATIENCE).pools
        assert sum(pool.settings.quota for pool in pools) == 4 * MIB
        assert {pool.settings.owner for pool in pools} == {"alice"}
