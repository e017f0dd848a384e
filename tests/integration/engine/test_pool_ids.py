"""What is asked of a pool by its id is never done to another of its name."""

from collections.abc import Callable, Iterator

import grpc
import pytest
from google.protobuf.message import Message

from tests.lib.daemon import Client, daemon
from tests.lib.support import PATIENCE
from tmem_proto.v1 import admin_pb2 as admin


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with daemon() as running:
        yield running.address


@pytest.mark.parametrize(
    ("method", "request_of"),
    [
        ("DestroyPool", lambda number: admin.DestroyPoolRequest(name="DestroyPool", pool_id=number)),
        ("Freeze", lambda number: admin.FreezeRequest(pool="Freeze", pool_id=number)),
        ("Thaw", lambda number: admin.ThawRequest(pool="Thaw", pool_id=number)),
        ("SetQuota", lambda number: admin.SetQuotaRequest(pool="SetQuota", quota=1 << 20, pool_id=number)),
        ("SetWeight", lambda number: admin.SetWeightRequest(pool="SetWeight", weight=7, pool_id=number)),
    ],
)
def test_a_message_for_an_older_pool_of_the_name_changes_nothing(
    address: str, method: str, request_of: Callable[[int], Message]
) -> None:
    client = Client(address)
    older = client.open(method).pool_id
    client.admin.DestroyPool(admin.DestroyPoolRequest(name=method, pool_id=older), timeout=PATIENCE)
    newer = client.open(method).pool_id
    assert newer != older
    before = _state(client, method)
    with pytest.raises(grpc.RpcError) as failed:
        getattr(client.admin, method)(request_of(older), timeout=PATIENCE)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert _state(client, method) == before
    getattr(client.admin, method)(request_of(newer), timeout=PATIENCE)
    client.close()


def _state(client: Client, name: str) -> tuple[int, bool, int, int]:
    pool = client.admin.GetPool(admin.GetPoolRequest(name=name), timeout=PATIENCE).pool
    return pool.id, pool.frozen, pool.settings.quota, pool.settings.weight
