"""The service Tmem over a real socket: what every call answers, and what it leaves behind."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import grpc
import lz4.block
import pytest

from tests.lib.daemon import OID, Client, Daemon, daemon
from tests.lib.support import PATIENCE, filled, noise, page
from tmem_proto.v1 import admin_pb2
from tmem_proto.v1 import tmem_pb2 as pb

STORED, REPLACED, STALE = (bytes([pb.PUT_OUTCOME_STORED]), bytes([pb.PUT_OUTCOME_REPLACED]), bytes([3]))


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon() as running:
        yield running


@pytest.fixture
def client(running: Daemon, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client with a persistent pool of the test's own."""
    client = Client(running.address)
    client.open(request.node.name[:64])
    yield client
    violations = client.admin.Check(admin_pb2.CheckRequest(), timeout=PATIENCE).violations
    client.close()
    assert list(violations) == []


class Stream:
    """An Exchange stream."""

    def __init__(self, client: Client) -> None:
        self._commands: queue.SimpleQueue[pb.Command | None] = queue.SimpleQueue()
        self._replies = client.tmem.Exchange(iter(self._commands.get, None), timeout=PATIENCE)

    def send(self, *commands: pb.Command) -> None:
        for command in commands:
            self._commands.put(command)

    def read(self) -> pb.Reply:
        reply: pb.Reply = next(self._replies)
        return reply

    def ask(self, command: pb.Command) -> pb.Reply:
        self.send(command)
        return self.read()

    def end(self) -> list[pb.Reply]:
        self._commands.put(None)
        return list(self._replies)

    def cut(self) -> None:
        self._replies.cancel()
        self._commands.put(None)


def lz4_block(data: bytes) -> bytes:
    block: bytes = lz4.block.compress(data, store_size=False)
    return block


def code_of(call: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(call, grpc.Call)
    return call.code()


def test_put_get_has_and_flush(client: Client) -> None:
    assert client.put({5: page(1), 6: page(2), 9: noise(3)}) == STORED * 3
    assert client.put({6: page(4)}) == REPLACED
    assert client.get([9, 5, 7, 6]) == {9: noise(3), 5: page(1), 6: page(4)}
    held = client.tmem.Has(pb.HasRequest(session=client.session, oid=OID, first=4, count=6)).held
    assert held == bytes([0, 1, 1, 0, 0, 1])
    assert client.tmem.Flush(pb.FlushRequest(session=client.session, oid=OID, indices=[5, 7])).found == 1
    assert client.get([5, 6]) == {6: page(4)}
    assert client.tmem.FlushObject(pb.FlushObjectRequest(session=client.session, oid=OID)).found == 2
    assert client.get([6, 9]) == {}


def test_a_batch_as_long_as_may_be(client: Client) -> None:
    pages = {index: page(index) for index in range(256)}
    assert client.put(pages) == STORED * 256
    assert client.get(list(pages)) == pages
    assert client.put({2 * index: page(index) for index in range(256)}) == REPLACED * 128 + STORED * 128


@pytest.mark.parametrize("codec", ["lz4", "lz4hc", "zstd", "raw"])
def test_lz4_both_ways(client: Client, codec: str) -> None:
    client.open(f"lz4-{codec}", codec=codec)
    pages = {0: page(1), 1: filled(b"\0" * 8), 2: noise(2), 3: page(3)}
    blocks = {0: lz4_block(page(1)), 1: lz4_block(pages[1]), 2: noise(2), 3: lz4_block(page(3))}
    assert client.put_blocks(blocks) == STORED * 4
    assert client.get([0, 1, 2, 3]) == pages
    request = client.get_request([3, 8, 2, 1, 0])
    request.accept = pb.ENCODING_LZ4
    response = client.tmem.Get(request)
    assert response.found == bytes([1, 0, 1, 1, 1])
    assert response.encoding == pb.ENCODING_LZ4
    start, got = 0, []
    for length, checksum in zip(response.lengths, response.checksums, strict=True):
        block = response.pages[start : start + length]
        got.append(block if length == 4096 else lz4.block.decompress(block, uncompressed_size=4096))
        assert google_crc32c.value(got[-1]) == checksum
        start += length
    assert got == [page(3), noise(2), pages[1], page(1)]
    assert start == len(response.pages)
    assert response.lengths[2] < 64  # a same-filled page is small on the wire too


@pytest.mark.parametrize("page_size", [8192, 262144])
def test_other_page_sizes(client: Client, page_size: int) -> None:
    opened = client.open(f"size-{page_size}", page_size=page_size)
    limit = opened.batch_limit
    assert limit == (2 << 20) // page_size
    pages = {index: page(index, page_size) for index in range(limit)}
    assert client.put(pages) == STORED * limit
    assert client.get(list(pages)) == pages


def test_a_private_ephemeral_get_takes_the_page(client: Client) -> None:
    client.open("cache", kind="ephemeral")
    client.put({1: page(1)})
    assert client.get([1]) == {1: page(1)}
    assert client.get([1]) == {}


def test_a_frozen_pool_refuses_and_flushes(client: Client) -> None:
    client.open("frozen")
    client.put({1: page(1)})
    client.admin.Freeze(admin_pb2.FreezeRequest(pool="frozen"))
    frozen = pb.PUT_OUTCOME_REFUSED_FROZEN
    assert client.put({1: page(2), 2: page(2)}) == bytes([frozen + 16, frozen])
    assert client.get([1]) == {}
    client.admin.Thaw(admin_pb2.ThawRequest(pool="frozen"))
    assert client.put({1: page(2)}) == STORED


def test_late_messages_change_nothing_and_are_counted(client: Client) -> None:
    def late() -> int:
        return client.admin.Stats(admin_pb2.StatsRequest()).daemon["late_messages"]

    before = late()
    client.put({1: page(1)})
    old = pb.Session(id=client.session.id, epoch=client.session.epoch)
    client.session.epoch = client.tmem.NewEpoch(pb.NewEpochRequest(session_id=old.id)).epoch
    request = client.put_request({1: page(2), 2: page(2)})
    request.session.CopyFrom(old)
    assert client.tmem.Put(request).outcomes == STALE * 2
    assert client.tmem.Flush(pb.FlushRequest(session=old, oid=OID, indices=[1])).stale
    assert client.tmem.FlushObject(pb.FlushObjectRequest(session=old, oid=OID)).stale
    assert client.tmem.Acknowledge(pb.AcknowledgeRequest(session=old, acknowledgement=1)).stale
    assert client.get([1, 2]) == {1: page(1)}
    assert late() == before + 4
    assert client.put({1: page(3)}) == REPLACED


def test_no_put_of_an_old_epoch_lands_after_the_new_one_began(client: Client, running: Daemon) -> None:
    other = Client(running.address)
    for _ in range(20):
        pages = {index: page(index) for index in range(256)}
        under_way = other.tmem.Put.future(client.put_request(pages), timeout=PATIENCE)
        client.session.epoch = client.tmem.NewEpoch(pb.NewEpochRequest(session_id=client.session.id)).epoch
        client.tmem.FlushObject(pb.FlushObjectRequest(session=client.session, oid=OID))
        assert set(under_way.result().outcomes) in ({pb.PUT_OUTCOME_STORED}, {pb.PUT_OUTCOME_STALE})
        assert client.get(list(pages)) == {}
    other.close()


def test_an_exclusive_get_frees_its_pages_when_acknowledged(client: Client) -> None:
    client.put({1: page(1), 2: page(2)})
    taken = client.tmem.Get(client.get_request([1, 2, 3], exclusive=True))
    assert client.pages([1, 2, 3], taken) == {1: page(1), 2: page(2)} == client.get([1, 2])
    client.put({2: page(22)})  # replaced since: not the page that was taken
    acknowledge = pb.AcknowledgeRequest(session=client.session, acknowledgement=taken.acknowledgement)
    assert client.tmem.Acknowledge(acknowledge).freed == 1
    assert client.tmem.Acknowledge(acknowledge).freed == 0
    assert client.get([1, 2]) == {2: page(22)}


def test_a_lost_reply_of_an_exclusive_get_loses_no_page(client: Client, running: Daemon) -> None:
    client.put({1: page(1)})
    broken = Client(running.address)
    broken.session = client.session
    stream = Stream(broken)
    stream.send(pb.Command(id=1, get=client.get_request([1], exclusive=True)))
    stream.read()  # so that the daemon has carried it out
    broken.close()
    assert client.get([1]) == {1: page(1)}
    assert client.tmem.Flush(pb.FlushRequest(session=client.session, oid=OID, indices=[7])).found == 0
    assert client.get([1]) == {1: page(1)}


def test_the_next_mutation_of_a_stream_acknowledges(client: Client) -> None:
    client.put({1: page(1)})
    stream = Stream(client)
    assert stream.ask(pb.Command(id=1, get=client.get_request([1], exclusive=True))).get.found == b"\1"
    assert stream.ask(pb.Command(id=2, get=client.get_request([1]))).get.found == b"\1"
    assert stream.ask(pb.Command(id=3, put=client.put_request({2: page(2)}))).put.outcomes == STORED
    assert stream.ask(pb.Command(id=4, get=client.get_request([1, 2]))).get.found == b"\0\1"
    assert stream.end() == []


def test_pipelined_commands_are_answered_in_their_order(client: Client) -> None:
    stream = Stream(client)
    commands = []
    for at in range(100):
        commands += [
            pb.Command(id=2 * at + 7, put=client.put_request({at % 3: page(at)})),
            pb.Command(id=2 * at + 8, get=client.get_request([at % 3])),
        ]
    stream.send(*commands)
    replies = stream.end()
    assert [reply.id for reply in replies] == [command.id for command in commands]
    assert [reply.get.pages for reply in replies[1::2]] == [page(at) for at in range(100)]


def test_an_error_on_a_stream_leaves_it_open(client: Client) -> None:
    stream = Stream(client)
    bad = stream.ask(pb.Command(id=1, put=client.put_request({1: b"short"})))
    assert (bad.id, bad.code, bad.WhichOneof("body")) == (1, 3, None)
    assert "5 bytes" in bad.error
    assert stream.ask(pb.Command(id=2)).code == 3
    assert stream.ask(pb.Command(id=3, has=pb.HasRequest(session=client.session, oid=OID, count=2))).has.held == b"\0\0"
    acknowledged = stream.ask(pb.Command(id=4, acknowledge=pb.AcknowledgeRequest(session=client.session)))
    assert acknowledged.acknowledge.freed == 0
    flush = pb.FlushObjectRequest(session=client.session, oid=OID)
    assert stream.ask(pb.Command(id=5, flush_object=flush)).flush_object.found == 0
    stream.cut()


def test_two_clients_on_one_pool(client: Client, running: Daemon) -> None:
    other = Client(running.address)
    other.session = client.session
    pages = {index: page(index) for index in range(64)}

    def put_all() -> None:
        for _ in range(10):
            other.put(pages)

    thread = threading.Thread(target=put_all)
    thread.start()
    while thread.is_alive():
        assert all(pages[index] == data for index, data in client.get(list(pages)).items())
    thread.join()
    assert client.get(list(pages)) == pages
    other.close()


MALFORMED = {
    "short page": lambda r: r.MergeFrom(pb.PutRequest(indices=[3], pages=b"x" * 4095)),
    "no page": lambda r: r.MergeFrom(pb.PutRequest(indices=[3])),
    "page without index": lambda r: r.MergeFrom(pb.PutRequest(pages=page(3) * 2)),
    "short oid": lambda r: r.MergeFrom(pb.PutRequest(oid=b"x" * 23)),
    "long oid": lambda r: r.MergeFrom(pb.PutRequest(oid=b"x" * 25)),
    "index twice": lambda r: r.MergeFrom(pb.PutRequest(indices=[3, 3], pages=page(3) * 2)),
    "too many": lambda r: r.MergeFrom(pb.PutRequest(indices=range(3, 260), pages=page(3) * 257)),
    "epoch ahead": lambda r: r.MergeFrom(pb.PutRequest(session=pb.Session(epoch=99))),
    "unknown encoding": lambda r: r.MergeFrom(pb.PutRequest(encoding=7)),  # type: ignore[arg-type]
    "lengths of raw pages": lambda r: r.MergeFrom(pb.PutRequest(lengths=[4096])),
    "no lengths": lambda r: r.MergeFrom(pb.PutRequest(encoding=pb.ENCODING_LZ4)),
    "lengths do not sum": lambda r: r.MergeFrom(pb.PutRequest(encoding=pb.ENCODING_LZ4, lengths=[4095])),
    "block of no bytes": lambda r: r.MergeFrom(pb.PutRequest(encoding=pb.ENCODING_LZ4, lengths=[4096, 0], indices=[3])),
    "block that does not decode": lambda r: r.MergeFrom(
        pb.PutRequest(encoding=pb.ENCODING_LZ4, lengths=[4096, 100], indices=[3], pages=page(2) + b"\xff" * 100)
    ),
    "block of more than a page": lambda r: r.MergeFrom(
        pb.PutRequest(encoding=pb.ENCODING_LZ4, lengths=[4096, 43], indices=[3], pages=page(2) + lz4_block(b"a" * 8192))
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_put_changes_nothing(client: Client, what: str) -> None:
    client.put({1: page(1)})
    request = client.put_request({1: page(2)})
    MALFORMED[what](request)
    with pytest.raises(grpc.RpcError) as caught:
        client.tmem.Put(request)
    assert code_of(caught.value) == grpc.StatusCode.INVALID_ARGUMENT
    assert client.get([1, 3]) == {1: page(1)}


def test_malformed_gets_and_flushes(client: Client) -> None:
    session = client.session
    calls: list[Callable[[], object]] = [
        lambda: client.tmem.Get(pb.GetRequest(session=session, oid=OID, indices=[1, 1])),
        lambda: client.tmem.Get(pb.GetRequest(session=session, oid=b"", indices=[1])),
        lambda: client.tmem.Get(pb.GetRequest(session=session, oid=OID, indices=range(257))),
        lambda: client.tmem.Get(pb.GetRequest(session=session, oid=OID, accept=9)),  # type: ignore[arg-type]
        lambda: client.tmem.Has(pb.HasRequest(session=session, oid=OID, count=65537)),
        lambda: client.tmem.Has(pb.HasRequest(session=session, oid=OID, first=2**32 - 1, count=2)),
        lambda: client.tmem.Flush(pb.FlushRequest(session=session, oid=OID, indices=range(8193))),
        lambda: client.tmem.FlushObject(pb.FlushObjectRequest(session=session, oid=b"x")),
        lambda: client.open("", "persistent"),
        lambda: client.open("odd", "odd"),
        lambda: client.open("odd", page_size=5000),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert code_of(caught.value) == grpc.StatusCode.INVALID_ARGUMENT


def test_unknown_sessions_and_pools(client: Client) -> None:
    unknown = pb.Session(id=client.session.id ^ 1, epoch=1)
    calls: list[Callable[[], object]] = [
        lambda: client.tmem.Get(pb.GetRequest(session=unknown, oid=OID, indices=[1])),
        lambda: client.tmem.Put(pb.PutRequest(oid=OID)),
        lambda: client.tmem.NewEpoch(pb.NewEpochRequest(session_id=5)),
        lambda: client.tmem.OpenPool(pb.OpenPoolRequest(name="nowhere")),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert code_of(caught.value) == grpc.StatusCode.NOT_FOUND


def test_other_settings_are_named(client: Client) -> None:
    client.open("settled", codec="zstd")
    with pytest.raises(grpc.RpcError, match="codec") as caught:
        client.open("settled", codec="lz4")
    assert code_of(caught.value) == grpc.StatusCode.FAILED_PRECONDITION


def test_a_message_that_is_too_large_is_refused(client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.put({1: b"x" * (5 << 20)})
    assert code_of(caught.value) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert client.put({1: page(1)}) == STORED


def test_bytes_that_are_no_message(client: Client) -> None:
    call: Any = client.channel.unary_unary("/tmem.v1.Tmem/Put")
    with pytest.raises(grpc.RpcError) as failed:
        call(b"\xff" * 100, timeout=PATIENCE)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "PutRequest" in str(failed.value.details())
    assert client.put({1: page(1)}) == STORED


def test_a_pool_destroyed_behind_an_exclusive_get_hinders_nobody(client: Client) -> None:
    kept = client.session
    client.open("doomed")
    client.put({1: page(1)})
    stream = Stream(client)
    stream.ask(pb.Command(id=1, get=client.get_request([1], exclusive=True)))
    client.admin.DestroyPool(admin_pb2.DestroyPoolRequest(name="doomed"))
    client.session = kept
    assert stream.ask(pb.Command(id=2, put=client.put_request({2: page(2)}))).put.outcomes == STORED
    stream.cut()


def test_calls_beyond_the_limit_are_refused() -> None:
    with daemon("--max-calls=2", "--drain=0") as small:
        client = Client(small.address)
        client.open()
        streams = [Stream(client), Stream(client)]
        for stream in streams:
            stream.ask(pb.Command(id=1, get=client.get_request([1])))
        with pytest.raises(grpc.RpcError) as caught:
            client.get([1])
        assert code_of(caught.value) == grpc.StatusCode.RESOURCE_EXHAUSTED
        for stream in streams:
            assert stream.end() == []
        assert client.get([1]) == {}
        client.close()


def test_a_client_that_does_not_read_is_held_and_harms_nobody(client: Client, running: Daemon) -> None:
    client.put({index: noise(index) for index in range(256)})
    greedy = Client(running.address)
    greedy.session = client.session
    stream = Stream(greedy)
    stream.send(*(pb.Command(id=at, get=client.get_request(range(256))) for at in range(200)))  # 200 MiB of answers
    stream.read()
    assert client.put({1: page(1)}) == REPLACED
    assert resident_mib(running) < 64 + 150
    stream.cut()
    greedy.close()


def resident_mib(running: Daemon) -> int:
    with open(f"/proc/{running.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) >> 10
