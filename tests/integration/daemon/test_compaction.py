"""The daemon's own compaction: memory that holds no page goes back without being asked for."""

import time

from tests.lib.daemon import Client, daemon
from tests.lib.support import noise
from tmem_proto.v1 import admin_pb2 as pb
from tmem_proto.v1 import tmem_pb2

PAGES = 4000


def test_memory_is_given_back_after_flushes_and_the_pages_left_are_whole() -> None:
    """Three of four pages of one size are flushed, so that every zspage keeps some of them."""
    pages = {index: noise(index, 1000) + bytes(3096) for index in range(PAGES)}
    flushed = [index for index in pages if index % 4]
    kept = [index for index in pages if index % 4 == 0]
    with daemon("--compact-every=1", "--shards=1") as running:
        client = Client(running.address)
        client.open()
        for first in range(0, PAGES, 100):
            client.put({index: pages[index] for index in range(first, first + 100)})
        full = footprint(client)
        for first in range(0, len(flushed), 100):
            request = tmem_pb2.FlushRequest(session=client.session, oid=bytes(range(24)), indices=flushed[first:][:100])
            client.tmem.Flush(request, timeout=30)
        deadline = time.monotonic() + 60
        while (now := footprint(client)) > full * 0.3:
            assert time.monotonic() < deadline, (full, now)
        for first in range(0, len(kept), 100):
            few = kept[first : first + 100]
            assert client.get(few) == {index: pages[index] for index in few}
        client.close()


def footprint(client: Client) -> int:
    return int(client.admin.Stats(pb.StatsRequest(), timeout=30).store["footprint_bytes"])
