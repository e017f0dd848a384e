"""What a client finds out by itself: services by reflection, calls by channelz; and one without generated code."""

import subprocess
import sys
from typing import Any

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz_pb2_grpc import ChannelzStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.lib.daemon import Client, daemon
from tests.lib.support import PATIENCE, page
from tmem_proto.v1 import admin_pb2, tmem_pb2

GENERIC = '''
"""Opens a pool, puts and gets, knowing nothing but an address and names."""
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

channel = grpc.insecure_channel(sys.argv[1])
known = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))


def call(service, name, /, **fields):
    method = known.FindServiceByName(service).methods_by_name[name]
    ask = channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return ask(GetMessageClass(method.input_type)(**fields), timeout=30)


page = bytes(range(256)) * 16
opened = call("tmem.v1.Tmem", "OpenPool", name="generic", settings={"kind": "persistent"})
session = {"id": opened.session.id, "epoch": opened.session.epoch}
key = {"session": session, "oid": b"o" * 24, "indices": [7]}
stored = call("tmem.v1.Tmem", "Put", pages=page, **key)
assert stored.outcomes == b"\\1", stored
got = call("tmem.v1.Tmem", "Get", **key)
assert (got.found, got.pages) == (b"\\1", page)
pools = call("tmem.v1.TmemAdmin", "ListPools").pools
assert [(pool.name, pool.stats.values["pages"]) for pool in pools] == [("generic", 1)]
assert not [name for name in sys.modules if name.startswith("tmem")]
'''


def test_reflection_knows_every_service_method_and_field(client: Client) -> None:
    database = ProtoReflectionDescriptorDatabase(client.channel)
    health, reflection = "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"
    assert set(database.get_services()) == {
        "tmem.v1.Tmem",
        "tmem.v1.TmemAdmin",
        health,
        reflection,
        "grpc.channelz.v1.Channelz",
    }
    for ours in (tmem_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR):
        assert database.FindFileByName(ours.name).SerializeToString() == ours.serialized_pb
        for service in ours.services_by_name.values():
            assert database.FindFileContainingSymbol(service.full_name).name == ours.name


def test_a_client_without_generated_code_opens_a_pool_puts_and_gets() -> None:
    with daemon() as running:
        command = [sys.executable, "-c", GENERIC, running.address]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.stderr == ""
    assert ended.returncode == 0


def server_calls(channel: grpc.Channel) -> channelz_pb2.ServerData:
    stub: Any = ChannelzStub(channel)
    (server,) = stub.GetServers(channelz_pb2.GetServersRequest(), timeout=PATIENCE).server
    data: channelz_pb2.ServerData = server.data
    return data


def test_channelz_counts_calls_and_shows_connections(client: Client) -> None:
    client.open()
    before = server_calls(client.channel)
    for index in range(10):
        client.put({index: page(index)})
    with pytest.raises(grpc.RpcError):
        client.get([1, 1])
    after = server_calls(client.channel)
    assert after.calls_started - before.calls_started == 12
    assert after.calls_succeeded - before.calls_succeeded >= 11
    stub: Any = ChannelzStub(client.channel)
    (server,) = stub.GetServers(channelz_pb2.GetServersRequest()).server
    sockets = stub.GetServerSockets(channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id)).socket_ref
    assert sockets


def test_channelz_is_for_administrators() -> None:
    with daemon("--admins=somebody") as running:
        client = Client(running.address)
        with pytest.raises(grpc.RpcError) as caught:
            server_calls(client.channel)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        client.close()
