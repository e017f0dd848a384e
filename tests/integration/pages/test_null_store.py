"""`--store null`: the daemon's front with nothing behind it."""

from collections.abc import Iterator

import google_crc32c
import grpc
import lz4.block
import pytest

import tmem
from tests.lib.daemon import OID, Client, Daemon, daemon
from tests.lib.support import noise, page
from tmem_proto.v1 import admin_pb2
from tmem_proto.v1 import tmem_pb2 as pb


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon("--store=null") as running:
        yield running


@pytest.fixture
def client(running: Daemon) -> Iterator[Client]:
    client = Client(running.address)
    yield client
    client.close()


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


def test_it_says_that_pages_are_not_kept(running: Daemon) -> None:
    assert "PAGES ARE NOT KEPT" in running.said
    with daemon() as keeping:
        assert "NOT KEPT" not in keeping.said


def test_puts_are_stored_gets_are_zeros_flushes_find_none(client: Client) -> None:
    client.open("nothing")
    assert client.put({1: page(1), 2: noise(2)}) == bytes([pb.PUT_OUTCOME_STORED]) * 2
    assert client.get([1, 2, 99]) == {index: bytes(4096) for index in (1, 2, 99)}
    flush = pb.FlushRequest(session=client.session, oid=OID, indices=[1])
    assert client.tmem.Flush(flush).found == 0
    assert client.tmem.FlushObject(pb.FlushObjectRequest(session=client.session, oid=OID)).found == 0
    has = pb.HasRequest(session=client.session, oid=OID, first=5, count=3)
    assert client.tmem.Has(has).held == b"\1\1\1"


@pytest.mark.parametrize("page_size", [4096, 262144])
def test_lz4_gets_are_blocks_of_a_page_of_zeros(client: Client, page_size: int) -> None:
    client.open(f"blocks{page_size}", "ephemeral", page_size=page_size)
    request = client.get_request([1, 2])
    request.accept = pb.ENCODING_LZ4
    response = client.tmem.Get(request)
    first, second = response.lengths
    assert first + second == len(response.pages)
    for block in (response.pages[:first], response.pages[first:]):
        assert lz4.block.decompress(block, uncompressed_size=page_size) == bytes(page_size)
    assert list(response.checksums) == [google_crc32c.value(bytes(page_size))] * 2


def test_the_sdk_works_with_it(running: Daemon) -> None:
    with tmem.connect(running.address) as store:
        pool = store.pool("sdk", kind="ephemeral", shared=True)
        assert all(outcome.stored for outcome in pool.put(1, {index: page(index) for index in range(300)}).values())
        assert pool.get(1, range(300)) == dict.fromkeys(range(300), bytes(4096))
        assert pool.get(1, [7], exclusive=True) == {7: bytes(4096)}


def test_pools_have_names_and_settings(client: Client) -> None:
    admin = client.admin
    settings = pb.PoolSettings(kind="ephemeral", weight=3, owner="me")
    created = admin.CreatePool(admin_pb2.CreatePoolRequest(name="made", settings=settings)).pool
    assert (created.settings.weight, created.settings.allocator) == (3, "zbud")
    admin.SetQuota(admin_pb2.SetQuotaRequest(pool="made", quota=1 << 20))
    admin.Freeze(admin_pb2.FreezeRequest(pool="made"))
    got = admin.GetPool(admin_pb2.GetPoolRequest(name="made")).pool
    assert (got.settings.quota, got.frozen) == (1 << 20, True)
    client.session = client.tmem.OpenPool(pb.OpenPoolRequest(name="made")).session
    for call, code in (
        (lambda: client.open("made", "persistent"), grpc.StatusCode.FAILED_PRECONDITION),
        (lambda: client.open("", "persistent"), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: client.open("x", "transient"), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: client.open("x", page_size=1 << 31), grpc.StatusCode.INVALID_ARGUMENT),
        (lambda: admin.CreatePool(admin_pb2.CreatePoolRequest(name="made")), grpc.StatusCode.ALREADY_EXISTS),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert code_of(caught.value) == code
    assert admin.DestroyPool(admin_pb2.DestroyPoolRequest(name="made")).dropped == 0
    with pytest.raises(grpc.RpcError) as caught:
        client.get([1])
    assert code_of(caught.value) == grpc.StatusCode.NOT_FOUND


def test_it_has_the_statistics_of_a_store(client: Client) -> None:
    client.open("counted")
    with daemon() as keeping:
        real = Client(keeping.address)
        real.open("counted")
        stats = [one.admin.Stats(admin_pb2.StatsRequest()).store for one in (client, real)]
        pools = [one.admin.GetPool(admin_pb2.GetPoolRequest(name="counted")).pool for one in (client, real)]
        real.close()
    assert set(stats[0]) == set(stats[1])
    assert set(pools[0].stats.values) == set(pools[1].stats.values)
