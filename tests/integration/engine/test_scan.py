"""Pool ids, and which pages a pool holds, over a real socket."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.lib.daemon import Client, Daemon, daemon
from tests.lib.support import PATIENCE, filled, page
from tmem_proto.v1 import admin_pb2 as pb
from tmem_proto.v1 import tmem_pb2

ZEROS = filled(b"\0" * 8)
MIB = 1 << 20


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon() as running:
        yield running


@pytest.fixture
def client(running: Daemon, request: pytest.FixtureRequest) -> Iterator[Client]:
    client = Client(running.address)
    client.open(request.node.name[:64])
    yield client
    client.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)[:64]


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


def oid(number: int) -> bytes:
    return number.to_bytes(24, "big")


def responses(client: Client, name: str) -> Iterator[pb.ScanResponse]:
    cursor = b""
    while True:
        response = client.admin.Scan(pb.ScanRequest(pool=name, cursor=cursor), timeout=PATIENCE)
        yield response
        cursor = response.cursor
        if not cursor:
            return


def scanned(client: Client, name: str) -> dict[tuple[bytes, int], int]:
    """Stamps by key; a key is given once."""
    found: dict[tuple[bytes, int], int] = {}
    for response in responses(client, name):
        for part in response.objects:
            for index, stamp in zip(part.indices, part.stamps, strict=True):
                assert (part.oid, index) not in found
                found[part.oid, index] = stamp
    return found


def test_a_scan_gives_every_page_in_responses_of_bounded_size(client: Client, name: str) -> None:
    """Pages apart from each other, with large indices, take the most bytes of a response."""
    indices = range(1 << 31, (1 << 31) + 9000 * 64, 64)
    for first in range(0, len(indices), 256):
        client.put(dict.fromkeys(indices[first : first + 256], ZEROS), oid(1))
    put = {(oid(1), index) for index in indices}
    given = list(responses(client, name))
    assert len(given) > 1
    assert max(response.ByteSize() for response in given) < MIB
    assert {(part.oid, index) for response in given for part in response.objects for index in part.indices} == put


def test_stamps_change_with_their_pages(client: Client, name: str) -> None:
    client.put({index: page(index) for index in range(200)}, oid(1))
    before = scanned(client, name)
    assert set(before) == {(oid(1), index) for index in range(200)}
    client.put({7: page(7)}, oid(1))
    client.tmem.Flush(tmem_pb2.FlushRequest(session=client.session, oid=oid(1), indices=[8]))
    after = scanned(client, name)
    assert {key for key in before if after.get(key) != before[key]} == {(oid(1), 7), (oid(1), 8)}
    assert set(before) - set(after) == {(oid(1), 8)}


def test_a_scan_gives_what_is_there_throughout_while_the_pool_is_in_use(client: Client, name: str) -> None:
    for first in range(0, 20_000, 200):
        client.put(dict.fromkeys(range(first, first + 200), ZEROS), oid(1))
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            client.put(dict.fromkeys(range(64), ZEROS), oid(2))
            client.tmem.FlushObject(tmem_pb2.FlushObjectRequest(session=client.session, oid=oid(2)))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        found = scanned(client, name)
    finally:
        stop.set()
        thread.join()
    assert {index for at, index in found if at == oid(1)} == set(range(20_000))


def test_an_empty_pool_and_one_that_is_not(client: Client, name: str) -> None:
    (only,) = responses(client, name)
    assert (list(only.objects), only.cursor) == ([], b"")
    with pytest.raises(grpc.RpcError) as caught:
        client.admin.Scan(pb.ScanRequest(pool="nowhere"))
    assert code_of(caught.value) == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("cursor", [b"x", b"\0" * 7, b"\xff" * 40, b"\0" * 5000], ids=len)
def test_a_cursor_that_is_none_is_refused_and_harms_nothing(client: Client, running: Daemon, cursor: bytes) -> None:
    name = client.admin.ListPools(pb.ListPoolsRequest()).pools[0].name
    with pytest.raises(grpc.RpcError) as caught:
        client.admin.Scan(pb.ScanRequest(pool=name, cursor=cursor))
    assert code_of(caught.value) == grpc.StatusCode.INVALID_ARGUMENT
    assert running.process.poll() is None


def test_a_pool_keeps_its_id_over_a_restart_and_no_other_has_it(tmp_path: Path) -> None:
    arena = f"--arena={tmp_path / 'arena'}"
    with daemon(arena) as first:
        client = Client(first.address)
        kept, gone = client.open("kept").pool_id, client.open("gone").pool_id
        client.admin.DestroyPool(pb.DestroyPoolRequest(name="gone"))
        first.kill()
        client.close()
    with daemon(arena) as second:
        client = Client(second.address)
        assert client.open("kept").pool_id == kept
        assert client.admin.GetPool(pb.GetPoolRequest(name="kept")).pool.id == kept
        ids = {kept, gone, client.open("gone").pool_id, client.open("new").pool_id}
        assert len(ids) == 4
        assert 0 not in ids
        client.close()


def test_a_pool_asked_for_by_its_id_is_that_pool_or_none(client: Client, name: str) -> None:
    number = client.tmem.OpenPool(tmem_pb2.OpenPoolRequest(name=name)).pool_id
    again = tmem_pb2.OpenPoolRequest(name=name, pool_id=number)
    assert client.tmem.OpenPool(again).pool_id == number
    client.admin.DestroyPool(pb.DestroyPoolRequest(name=name))
    again.settings.kind = "persistent"
    with pytest.raises(grpc.RpcError) as caught:
        client.tmem.OpenPool(again)
    assert code_of(caught.value) == grpc.StatusCode.NOT_FOUND
    assert name not in [pool.name for pool in client.admin.ListPools(pb.ListPoolsRequest()).pools]
    client.open(name)
    sessions = client.admin.Stats(pb.StatsRequest()).daemon["sessions"]
    with pytest.raises(grpc.RpcError) as caught:
        client.tmem.OpenPool(again)
    assert code_of(caught.value) == grpc.StatusCode.NOT_FOUND
    assert client.admin.Stats(pb.StatsRequest()).daemon["sessions"] == sessions
