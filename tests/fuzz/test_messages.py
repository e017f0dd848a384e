"""A fuzz target for each request of the wire: whatever comes, the daemon says what is wrong with it and goes on.

`TMEM_FUZZ_SECONDS` is how long each target runs, `TMEM_FUZZ_SEED` where it begins; without them a few hundred messages
each, always the same.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

import grpc
import lz4.block
import pytest

from tests.fuzz.mutate import Mutator
from tests.lib.daemon import OID, Client, Daemon, daemon
from tests.lib.support import PATIENCE
from tmem_proto.v1 import admin_pb2 as admin
from tmem_proto.v1 import tmem_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

SECONDS = float(os.environ.get("TMEM_FUZZ_SECONDS", 0))
SEED = int(os.environ.get("TMEM_FUZZ_SEED", 1))
MESSAGES = 200
KEPT = bytes(range(256)) * 16
MIB = 1 << 20
MOST_GROWTH = 150 * MIB  # beyond its arena of 64 MiB

# What a client can bring about.
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
BLOCKS = [lz4.block.compress(bytes([n]) * 4096, store_size=False) for n in range(8)]


def _put(session: pb.Session) -> pb.PutRequest:
    lengths = [len(block) for block in BLOCKS]
    return pb.PutRequest(
        session=session, oid=OID, indices=range(8), encoding=pb.ENCODING_LZ4, lengths=lengths, pages=b"".join(BLOCKS)
    )


SEEDS: dict[str, Callable[[pb.Session], Message]] = {
    "Tmem/OpenPool": lambda _: pb.OpenPoolRequest(name="fuzzed", settings=pb.PoolSettings(kind="persistent")),
    "Tmem/NewEpoch": lambda session: pb.NewEpochRequest(session_id=session.id),
    "Tmem/Put": _put,
    "Tmem/Get": lambda session: pb.GetRequest(session=session, oid=OID, indices=range(8), accept=pb.ENCODING_LZ4),
    "Tmem/Acknowledge": lambda session: pb.AcknowledgeRequest(session=session, acknowledgement=1),
    "Tmem/Has": lambda session: pb.HasRequest(session=session, oid=OID, first=0, count=100),
    "Tmem/Flush": lambda session: pb.FlushRequest(session=session, oid=OID, indices=range(8)),
    "Tmem/FlushObject": lambda session: pb.FlushObjectRequest(session=session, oid=OID),
    "TmemAdmin/ListPools": lambda _: admin.ListPoolsRequest(),
    "TmemAdmin/GetPool": lambda _: admin.GetPoolRequest(name="fuzzed"),
    "TmemAdmin/CreatePool": lambda _: admin.CreatePoolRequest(name="new", settings=pb.PoolSettings(kind="ephemeral")),
    "TmemAdmin/DestroyPool": lambda _: admin.DestroyPoolRequest(name="new"),
    "TmemAdmin/Freeze": lambda _: admin.FreezeRequest(pool="fuzzed"),
    "TmemAdmin/Thaw": lambda _: admin.ThawRequest(pool="fuzzed"),
    "TmemAdmin/SetQuota": lambda _: admin.SetQuotaRequest(pool="fuzzed", quota=10 * MIB),
    "TmemAdmin/SetWeight": lambda _: admin.SetWeightRequest(pool="fuzzed", weight=1),
    "TmemAdmin/Relinquish": lambda _: admin.RelinquishRequest(size=MIB),
    "TmemAdmin/Resize": lambda _: admin.ResizeRequest(memory=64 * MIB),
    "TmemAdmin/Compact": lambda _: admin.CompactRequest(),
    "TmemAdmin/Check": lambda _: admin.CheckRequest(),
    "TmemAdmin/Stats": lambda _: admin.StatsRequest(),
    "TmemAdmin/ListClients": lambda _: admin.ListClientsRequest(),
    "TmemAdmin/ListWorkers": lambda _: admin.ListWorkersRequest(),
    "TmemAdmin/Scan": lambda _: admin.ScanRequest(pool="fuzzed", cursor=bytes(32)),
    "TmemAdmin/Inject": lambda _: admin.InjectRequest(injections=[admin.Injection(method="Put")]),
    "TmemAdmin/CreateExport": lambda _: admin.CreateExportRequest(
        name="new", size=MIB, codec="lz4hc", block_size=65536
    ),
    "TmemAdmin/ListExports": lambda _: admin.ListExportsRequest(),
    "TmemAdmin/RemoveExport": lambda _: admin.RemoveExportRequest(name="fuzzed", force=True),
    "TmemAdmin/ResizeExport": lambda _: admin.ResizeExportRequest(name="fuzzed", size=2 * MIB),
    "TmemAdmin/AllowExport": lambda _: admin.AllowExportRequest(name="fuzzed", clients=["alice", "bob"]),
    "TmemAdmin/DrainExport": lambda _: admin.DrainExportRequest(name="fuzzed"),
    "TmemAdmin/OpenSnapshot": lambda _: admin.OpenSnapshotRequest(export="fuzzed"),
    "TmemAdmin/ScanSnapshot": lambda _: admin.ScanSnapshotRequest(id=1, first=1),
    "TmemAdmin/ReadSnapshot": lambda _: admin.ReadSnapshotRequest(id=1, indices=[1, 2], done=1),
    "TmemAdmin/CloseSnapshot": lambda _: admin.CloseSnapshotRequest(id=1),
}
"""A sound request of each unary method."""

COMMANDS: dict[str, Callable[[pb.Session], pb.Command]] = {
    "put": lambda session: pb.Command(id=1, put=_put(session)),
    "get": lambda session: pb.Command(id=2, get=pb.GetRequest(session=session, oid=OID, indices=range(8))),
    "flush": lambda session: pb.Command(id=3, flush=pb.FlushRequest(session=session, oid=OID, indices=[1])),
    "flush_object": lambda session: pb.Command(id=4, flush_object=pb.FlushObjectRequest(session=session, oid=OID)),
    "has": lambda session: pb.Command(id=5, has=pb.HasRequest(session=session, oid=OID, count=9)),
    "acknowledge": lambda session: pb.Command(id=6, acknowledge=pb.AcknowledgeRequest(session=session)),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Daemon]:
    with daemon() as started:
        yield started


@pytest.fixture
def client(running: Daemon) -> Iterator[Client]:
    """A client of the pool that is fuzzed; afterwards another's page and the store are as they should be."""
    client, other = Client(running.address), Client(running.address)
    other.open("kept")
    other.put({7: KEPT})
    _begin(client)
    yield client
    assert running.process.poll() is None
    assert other.get([7]) == {7: KEPT}
    assert other.admin.Check(admin.CheckRequest(), timeout=PATIENCE).violations == []
    assert _resident(running) < MOST_GROWTH
    client.close()
    other.close()


def test_every_method_has_a_target() -> None:
    services = [pb.DESCRIPTOR.services_by_name["Tmem"], admin.DESCRIPTOR.services_by_name["TmemAdmin"]]
    methods = {f"{service.name}/{method.name}" for service in services for method in service.methods}
    assert methods - {"Tmem/Exchange", "TmemAdmin/Watch"} == set(SEEDS)
    bodies = pb.Command.DESCRIPTOR.oneofs_by_name["body"].fields
    assert {field.name for field in bodies} == set(COMMANDS)


@pytest.mark.parametrize("method", SEEDS)
def test_a_request(client: Client, method: str) -> None:
    call: Any = client.channel.unary_unary(f"/tmem.v1.{method}")
    for data in _messages(lambda: SEEDS[method](client.session)):
        try:
            call(data, timeout=PATIENCE)
        except grpc.RpcError as error:
            _expect(error, data)
            if error.code() is grpc.StatusCode.NOT_FOUND and "session" in (error.details() or ""):
                _begin(client)


@pytest.mark.parametrize("body", COMMANDS)
def test_a_command_of_a_stream(client: Client, body: str) -> None:
    exchange: Any = client.channel.stream_stream("/tmem.v1.Tmem/Exchange")
    for data in _messages(lambda: COMMANDS[body](client.session)):
        try:
            for answer in exchange(iter([data, COMMANDS["has"](client.session).SerializeToString()]), timeout=PATIENCE):
                reply = pb.Reply.FromString(answer)
                assert reply.code in {code.value[0] for code in EXPECTED}, (reply, data.hex())
        except grpc.RpcError as error:
            _expect(error, data)


def test_a_watch(client: Client) -> None:
    watch: Any = client.channel.unary_stream("/tmem.v1.TmemAdmin/Watch")
    for data in _messages(lambda: admin.WatchRequest(pool="fuzzed")):
        events = watch(data, timeout=PATIENCE)
        try:
            events.initial_metadata()
        finally:
            events.cancel()


def _begin(client: Client) -> None:
    """A pool as nobody has changed it yet."""
    with contextlib.suppress(grpc.RpcError):
        client.admin.DestroyPool(admin.DestroyPoolRequest(name="fuzzed"), timeout=PATIENCE)
    client.open("fuzzed")


def _messages(sound: Callable[[], Message]) -> Iterator[bytes]:
    mutator, end = Mutator(SEED), time.monotonic() + SECONDS
    count = 0
    while count < MESSAGES if not SECONDS else time.monotonic() < end:
        count += 1
        yield mutator.bytes_of(sound())


def _expect(error: Any, data: bytes) -> None:
    assert error.code() in EXPECTED, (error.code(), error.details(), data.hex())


def _resident(running: Daemon) -> int:
    with open(f"/proc/{running.process.pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))
