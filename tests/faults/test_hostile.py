"""Clients that mean harm, or are merely careless: what they open, ask for and abandon costs others nothing for long."""

from __future__ import annotations

import os
import re
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING

import grpc
import pytest

import tmem
from tests.lib.certificates import Authority
from tests.lib.daemon import Client, Daemon, daemon
from tests.lib.support import PATIENCE, page
from tmem_proto.v1 import tmem_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SESSIONS = 4
ABANDONED = 30
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Authority]]:
    """A daemon with few of everything."""
    authority = Authority(tmp_path_factory.mktemp("hostile"))
    flags = (f"--max-sessions={SESSIONS}", "--threads=1", *authority.flags(authority.server()))
    with daemon(*flags) as running:
        yield running, authority


@pytest.fixture
def known(server: tuple[Daemon, Authority]) -> Iterator[Callable[[str], Client]]:
    """Makes the client of a name, which has a pool of its own."""
    running, authority = server
    with ExitStack() as stack:

        def make(name: str) -> Client:
            client = Client(running.address, authority.credentials(authority.client(name)))
            stack.callback(client.close)
            client.open(name)
            return client

        yield make


def test_who_opens_session_after_session_ends_its_own(known: Callable[[str], Client]) -> None:
    careful = known("careful")
    careful.put({7: page(7)})
    greedy = known("greedy")
    first = pb.Session()
    first.CopyFrom(greedy.session)
    for _ in range(3 * SESSIONS):
        greedy.open("greedy")
    assert careful.get([7]) == {7: page(7)}
    greedy.session = first
    with pytest.raises(grpc.RpcError) as caught:
        greedy.get([7])
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_program_that_asks_for_its_pool_again_and_again_is_served(server: tuple[Daemon, Authority]) -> None:
    running, authority = server
    credentials = authority.credentials(authority.client("forgetful"))
    with tmem.connect(running.address, credentials=credentials) as store:
        pool = store.pool("forgetful")
        for number in range(3 * SESSIONS):
            assert store.pool("forgetful").put(1, {number: page(number)})[number].stored
        assert pool.get(1, range(3 * SESSIONS)) == {number: page(number) for number in range(3 * SESSIONS)}


def test_an_acknowledgement_of_one_session_is_none_of_another(known: Callable[[str], Client]) -> None:
    client = known("taker")
    client.put({1: page(1), 2: page(2)})
    earlier = client.tmem.Get(client.get_request([1], exclusive=True)).acknowledgement
    client.open("taker")
    later = client.tmem.Get(client.get_request([2], exclusive=True)).acknowledgement
    asked = pb.AcknowledgeRequest(session=client.session, acknowledgement=earlier)
    assert client.tmem.Acknowledge(asked).freed == 0
    assert client.get([1, 2]) == {1: page(1), 2: page(2)}
    asked.acknowledgement = later
    assert client.tmem.Acknowledge(asked).freed == 1


def test_calls_that_are_abandoned_before_they_begin_are_dropped(
    server: tuple[Daemon, Authority], known: Callable[[str], Client]
) -> None:
    client = known("slow")
    client.open("squeezed", "ephemeral", codec="zstd:19")
    pages = {index: os.urandom(1024) * 4 for index in range(256)}
    before = _received(server[0])
    calls = [client.tmem.Put.future(client.put_request(pages, number.to_bytes(24))) for number in range(ABANDONED)]
    while _received(server[0]) < before + ABANDONED * MIB:
        pass
    for call in calls:
        call.cancel()
    last = (ABANDONED).to_bytes(24)
    client.tmem.Put(client.put_request(pages, last), timeout=PATIENCE)  # behind all others, as there is one thread
    begun = [number for number in range(ABANDONED) if client.get([0], number.to_bytes(24))]
    assert len(begun) < ABANDONED


def _received(running: Daemon) -> int:
    """Bytes of raw pages that the daemon has had so far."""
    with urllib.request.urlopen(running.metrics_url, timeout=PATIENCE) as answer:
        text = answer.read().decode()
    found = re.search(r'^tmem_received_page_bytes_total{encoding="raw"} (\S+)$', text, re.MULTILINE)
    assert found
    return int(float(found[1]))
